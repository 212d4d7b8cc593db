//! Ways up a Merkle tree, against the tree computed whole.

use super::*;
use proptest::prelude::*;

/// The root of a tree and the way to a leaf, as RFC 9162 defines them.
fn tree(leaves: &[Vec<u8>], index: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    if let [leaf] = leaves {
        return (hash(&[&[0], leaf]), Vec::new());
    }
    let split = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(split);
    let ((left, right), mut way, sibling) = match index < split {
        true => {
            let ((root, way), (other, _)) = (tree(left, index), tree(right, 0));
            ((root, other.clone()), way, other)
        }
        false => {
            let ((other, _), (root, way)) = (tree(left, 0), tree(right, index - split));
            ((other.clone(), root), way, other)
        }
    };
    way.push(sibling);
    (hash(&[&[1], &left, &right]), way)
}

proptest! {
    #[test]
    fn every_way_leads_to_the_root_and_no_other_does(count in 1_usize..40, index: prop::sample::Index, other: prop::sample::Index) {
        let leaves: Vec<Vec<u8>> = (0..count).map(|leaf| vec![u8::try_from(leaf).unwrap()]).collect();
        let index = index.index(count);
        let (root, hashes) = tree(&leaves, index);
        let proof = Proof { index: index as u64, size: count as u64, hashes, checkpoint: String::new() };
        prop_assert_eq!(proof.root(&leaves[index]), Some(root.clone()));
        prop_assert_ne!(proof.root(b"another leaf"), Some(root.clone()));
        let elsewhere = other.index(count);
        if elsewhere != index {
            prop_assert_ne!(Proof { index: elsewhere as u64, ..proof.clone() }.root(&leaves[index]), Some(root.clone()));
        }
        let mut longer = proof.clone();
        longer.hashes.push(root.clone());
        prop_assert_ne!(longer.root(&leaves[index]), Some(root));
        prop_assert_eq!(Proof { index: count as u64, ..proof }.root(&leaves[index]), None);
    }

    #[test]
    fn no_entry_makes_it_panic(json in "[{}\":,a-zA-Z0-9=\\[\\]]{0,200}", index: u64, size: u64, checkpoint in "[ -~\\n\u{2014}]{0,80}") {
        let _ = Entry::from_annotation(&json);
        let proof = Proof { index, size, hashes: vec![vec![1]; 70], checkpoint };
        let _ = proof.root(b"leaf");
    }
}

#[test]
fn a_checkpoint_of_any_form_makes_nothing_panic() {
    let key = crate::fixture::Key::new();
    let key = PublicKey::parse_pem(key.pem().as_bytes()).unwrap().pop().unwrap();
    for checkpoint in ["", "\n\n", "a\n1\n\n", "a\n1\nAAAA\n\n\u{2014} x AA==\n", "a\nx\nAAAA\n\n", "a\n1\n!\n\n"] {
        let proof = Proof { index: 0, size: 1, hashes: Vec::new(), checkpoint: checkpoint.to_owned() };
        assert!(proof.verify(b"leaf", &key).is_err(), "{checkpoint:?}");
    }
}
