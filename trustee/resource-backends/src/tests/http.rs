//! How calls end when a service is slow, busy, broken or hostile.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;

use super::LIMITS;
use super::double::{Double, Reply};
use crate::error::{Error, Kind};
use crate::http::{Answer, Http, Limits, Repeat, Trust};

async fn call(url: &str, limits: Limits, repeat: Repeat) -> Result<Answer, Error> {
    let http = Http::new("the service".to_owned(), Trust::local(), limits)?;
    http.send(http.request(Method::POST, url).body("body"), repeat).await
}

/// Answers with each of the statuses once, then with 200.
async fn stumbling(replies: Vec<fn() -> Reply>) -> Double {
    let next = AtomicUsize::new(0);
    Double::start(move |_| match replies.get(next.fetch_add(1, Ordering::Relaxed)) {
        Some(reply) => reply(),
        None => Reply::status(200),
    })
    .await
}

#[tokio::test]
async fn what_passes_is_waited_out() {
    let service = stumbling(vec![|| Reply::status(500), || Reply::status(503), || Reply::status(429)]).await;
    let answer = call(&service.url, LIMITS, Repeat::Always).await.unwrap();
    assert_eq!((answer.status.as_u16(), service.seen().len()), (200, 4));
}

#[tokio::test]
async fn a_service_that_names_a_time_is_left_alone_until_then() {
    let service = stumbling(vec![|| Reply::status(429).with("retry-after", "1")]).await;
    let began = Instant::now();
    let answer = call(&service.url, LIMITS, Repeat::Untaken).await.unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_time_beyond_the_deadline_ends_the_call_at_once() {
    let service = stumbling(vec![|| Reply::status(503).with("retry-after", "3600")]).await;
    let answer = call(&service.url, LIMITS, Repeat::Always).await.unwrap();
    assert_eq!((answer.status.as_u16(), service.seen().len()), (503, 1));
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_twice() {
    let service = stumbling(vec![|| Reply::status(500)]).await;
    let answer = call(&service.url, LIMITS, Repeat::Untaken).await.unwrap();
    assert_eq!((answer.status.as_u16(), service.seen().len()), (500, 1));
}

#[tokio::test]
async fn repetition_ends() {
    let service = Double::start(|_| Reply::status(503).with("retry-after", "0")).await;
    let answer = call(&service.url, LIMITS, Repeat::Always).await.unwrap();
    assert_eq!((answer.status.as_u16(), service.seen().len()), (503, 8));
}

#[tokio::test]
async fn a_service_that_says_nothing_is_given_up() {
    let service = Double::start(|_| Reply::Stall).await;
    let limits = Limits { attempt: Duration::from_millis(50), total: Duration::from_millis(500), ..LIMITS };
    let error = call(&service.url, limits, Repeat::Always).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(service.seen().len() > 1, "it was asked once only");
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let limits = Limits { total: Duration::from_millis(100), ..LIMITS };
    let error = call(&url, limits, Repeat::Untaken).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(!error.to_string().contains(&url), "a URL may name what it should not: {error}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let service = Double::start(|_| Reply::Endless).await;
    let error = call(&service.url, LIMITS, Repeat::Always).await.err().unwrap();
    assert!(matches!(&error, Error::Malformed { cause, .. } if cause.contains("longer than")), "{error}");
    assert_eq!(service.seen().len(), 1);
}

#[tokio::test]
async fn nothing_is_carried_to_another_address() {
    let elsewhere = Double::start(|_| Reply::status(200)).await;
    let target = elsewhere.url.clone();
    let service = Double::start(move |_| Reply::status(307).with("location", &target)).await;
    let answer = call(&service.url, LIMITS, Repeat::Always).await.unwrap();
    let error = Error::refusal("the service", answer.status, "");
    assert!(error.to_string().contains("another address"), "{error}");
    assert_eq!((service.seen().len(), elsewhere.seen().len()), (1, 0));
}
