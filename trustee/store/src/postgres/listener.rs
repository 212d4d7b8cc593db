//! Hears of writes through PostgreSQL's LISTEN, and comes back by itself when the line was cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPool};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::changes::Bell;

/// Listens until it is dropped.
pub(super) struct Listener {
    pool: PgPool,
    up: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Returns when it hears.
    pub async fn start(pool: PgPool, bell: Arc<Bell>) -> Result<Self, sqlx::Error> {
        let listener = connect(&pool).await?;
        let up = Arc::new(AtomicBool::new(true));
        let task = tokio::spawn(run(listener, pool.clone(), up.clone(), bell));
        Ok(Self { pool, up, task })
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub async fn close(&self) {
        self.task.abort();
        self.up.store(false, Ordering::Relaxed);
        self.pool.close().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut listener: PgListener, pool: PgPool, up: Arc<AtomicBool>, bell: Arc<Bell>) {
    loop {
        let cause = hear(&mut listener, &bell).await;
        up.store(false, Ordering::Relaxed);
        tracing::warn!(cause, "changes of other replicas are not heard of until PostgreSQL answers again");
        drop(listener);
        listener = loop {
            match connect(&pool).await {
                Ok(listener) => break listener,
                Err(sqlx::Error::PoolClosed) => return,
                Err(_) => sleep(PAUSE).await,
            }
        };
        // What happened meanwhile was told to nobody.
        up.store(true, Ordering::Relaxed);
        bell.ring_all();
        tracing::info!("changes of other replicas are heard of again");
    }
}

async fn connect(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Rings until the line is cut, and returns why.
async fn hear(listener: &mut PgListener, bell: &Bell) -> String {
    loop {
        match timeout(QUIET, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => bell.ring(notification.payload()),
            Ok(Ok(None)) => return "the connection was closed".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            // A peer that vanished without a word is found out by asking.
            Err(_) => match timeout(PATIENCE, sqlx::query("SELECT 1").execute(&mut *listener)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "it does not answer".to_owned(),
            },
        }
    }
}

/// The payload is the namespace.
pub(super) const CHANNEL: &str = "cocoon_store";
const QUIET: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);
