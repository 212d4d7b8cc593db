//! Changing the master key while the store is in use.

use std::sync::PoisonError;

use zeroize::Zeroizing;

use crate::error::Error;
use crate::master_key::MasterKey;
use crate::{Store, backend::Placed};

impl Store {
    /// Seals every value anew, past versions included, and returns how many. From its start on this store seals
    /// with `new`.
    ///
    /// Other replicas must know both keys before it starts. What they write meanwhile under the old one is left
    /// for another call, and so is the rest if it is cut off: it begins where something is left. The old key can
    /// go when every replica seals with the new one and a call returns 0.
    ///
    /// # Errors
    /// [`Error::Plaintext`] for files; [`Error::Damaged`] with the first value that doesn't open,
    /// [`Error::Unavailable`].
    pub async fn rotate(&self, new: MasterKey) -> Result<u64, Error> {
        let master = {
            let lock = self.0.master_key.as_ref().ok_or(Error::Plaintext)?;
            let mut key = lock.write().unwrap_or_else(PoisonError::into_inner);
            *key = new.and(&key);
            key.clone()
        };
        let mut count = 0;
        let mut rows = self.0.backend.stale(master.id(), None).await?;
        while !rows.is_empty() {
            for placed in &mut rows {
                reseal(&master, placed)?;
            }
            self.0.backend.reseal(&rows).await?;
            count += rows.len() as u64;
            rows = self.0.backend.stale(master.id(), rows.last()).await?;
        }
        tracing::info!(count, key = master.id(), "values are sealed with another master key");
        Ok(count)
    }
}

fn reseal(master: &MasterKey, placed: &mut Placed) -> Result<(), Error> {
    let Placed { namespace, key, row, .. } = placed;
    let value = master
        .open(&row.kept.key_id, namespace, key, &row.kept.bytes)
        .map_err(|_| Error::Damaged { namespace: namespace.clone(), key: key.clone() })?;
    row.kept.bytes = Zeroizing::new(master.seal(namespace, key, &value)?);
    row.kept.key_id = master.id().to_owned();
    Ok(())
}
