//! Policies in the store: replicas, conditions, history, and texts that are none.

use std::time::Duration;

use tokio::time::timeout;

use super::*;

const TEXT: &str = "package policy\ntrust_claims := {\"hardware\": 2}";

async fn follow(policies: &Policies, changes: &mut store::Changes) {
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap();
    policies.refresh().await.unwrap();
}

fn is_conflict<T>(outcome: Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::PolicyStore(store::Error::Conflict { .. })))
}

#[tokio::test]
async fn shipped_policies_are_in_force_until_others_are_stored_and_again_after() {
    let (policies, _) = Policies::load(Store::memory().await.unwrap()).await.unwrap();
    for class in ["cpu", "dcu", "gpu", "nvidia-dpu", "ppcie", "switch"] {
        policies.get(&format!("default_{class}")).unwrap();
    }
    assert!(policies.list().iter().all(|info| info.version == 0 && info.broken.is_none()));
    let shipped = policies.text("default_cpu", None).await.unwrap().unwrap();
    assert_eq!(shipped.1, 0);

    let version = policies.set("default_cpu", TEXT.to_owned(), If::Version(0)).await.unwrap();
    assert_eq!(policies.text("default_cpu", None).await.unwrap(), Some((TEXT.to_owned(), version)));
    assert!(is_conflict(policies.set("default_cpu", TEXT.to_owned(), If::Absent).await));
    assert!(is_conflict(policies.set("default_cpu", TEXT.to_owned(), If::Version(version + 1)).await));
    let stored = policies.get("default_cpu").unwrap();

    assert!(is_conflict(policies.delete("default_cpu", If::Version(version + 1)).await));
    assert!(policies.delete("default_cpu", If::Version(version)).await.unwrap());
    assert!(!policies.delete("default_cpu", If::Any).await.unwrap());
    assert_eq!(policies.text("default_cpu", None).await.unwrap(), Some(shipped));
    assert!(!Arc::ptr_eq(&policies.get("default_cpu").unwrap(), &stored));
    assert!(matches!(policies.get("other_cpu"), Err(Error::NoPolicy(id)) if id == "other_cpu"));
}

#[tokio::test]
async fn another_replicas_policy_takes_effect_here() {
    let store = Store::memory().await.unwrap();
    let (one, _) = Policies::load(store.clone()).await.unwrap();
    let (other, mut changes) = Policies::load(store).await.unwrap();
    one.set("mine_cpu", TEXT.to_owned(), If::Any).await.unwrap();
    follow(&other, &mut changes).await;
    assert_eq!(other.list(), one.list());
    other.get("mine_cpu").unwrap();

    one.delete("mine_cpu", If::Any).await.unwrap();
    follow(&other, &mut changes).await;
    assert!(matches!(other.get("mine_cpu"), Err(Error::NoPolicy(_))));
}

#[tokio::test]
async fn a_stored_text_that_is_no_policy_leaves_the_one_before_in_force() {
    let store = Store::memory().await.unwrap();
    let (policies, mut changes) = Policies::load(store.clone()).await.unwrap();
    policies.set("default_cpu", TEXT.to_owned(), If::Any).await.unwrap();
    follow(&policies, &mut changes).await;
    let before = policies.get("default_cpu").unwrap();

    for id in ["default_cpu", "new_cpu"] {
        store.put(NAMESPACE, &key(id).unwrap(), b"nonsense").await.unwrap();
    }
    follow(&policies, &mut changes).await;
    assert!(Arc::ptr_eq(&policies.get("default_cpu").unwrap(), &before));
    assert!(matches!(policies.get("new_cpu"), Err(Error::BrokenPolicy { .. })));
    assert!(policies.list().iter().filter(|info| info.broken.is_some()).count() == 2);
    assert_eq!(policies.text("default_cpu", None).await.unwrap().unwrap().0, "nonsense");

    // One that starts now has no policy before it; the shipped one could be less strict than the owner's.
    let (fresh, _) = Policies::load(store).await.unwrap();
    let refused = fresh.get("default_cpu").err().unwrap();
    assert!(matches!(&refused, Error::BrokenPolicy { id, .. } if id == "default_cpu"), "{refused}");
    fresh.set("default_cpu", TEXT.to_owned(), If::Any).await.unwrap();
    fresh.get("default_cpu").unwrap();
}

#[tokio::test]
async fn earlier_versions_can_be_read() {
    let (policies, _) = Policies::load(Store::memory().await.unwrap()).await.unwrap();
    let first = policies.set("mine_cpu", TEXT.to_owned(), If::Absent).await.unwrap();
    let second = policies.set("mine_cpu", "package policy".to_owned(), If::Version(first)).await.unwrap();
    policies.delete("mine_cpu", If::Any).await.unwrap();

    let history = policies.history("mine_cpu").await.unwrap();
    assert_eq!(history.len(), 3);
    assert!(history[0].deleted);
    assert_eq!((history[1].version, history[2].version), (second, first));
    assert_eq!(policies.text("mine_cpu", Some(first)).await.unwrap(), Some((TEXT.to_owned(), first)));
    assert_eq!(policies.text("mine_cpu", None).await.unwrap(), None);
    assert_eq!(policies.text("mine_cpu", Some(second + 1000)).await.unwrap(), None);
}

#[tokio::test]
async fn ids_are_checked_and_nothing_that_is_no_policy_is_stored() {
    let (policies, _) = Policies::load(Store::memory().await.unwrap()).await.unwrap();
    for id in ["", "a/b", "../x", "a b", &"x".repeat(65)] {
        assert!(matches!(policies.set(id, TEXT.to_owned(), If::Any).await, Err(Error::PolicyId(_))), "{id}");
        assert!(matches!(policies.text(id, None).await, Err(Error::PolicyId(_))), "{id}");
    }
    for text in ["nonsense", "package other", "package policy\nallow { true }", "package policy\nx := data"] {
        let refused = policies.set("default_cpu", text.to_owned(), If::Any).await;
        assert!(matches!(refused, Err(Error::Policy { .. })), "{text}");
    }
    assert!(policies.list().iter().all(|info| info.version == 0));
}
