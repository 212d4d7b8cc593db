//! Sessions with a token: a few side by side, one login for all of them, and a new login after a loss.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error as Cause, RvError};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::error::doing;
use crate::{Error, HsmSettings, Token};

pub(crate) struct Sessions {
    module: Pkcs11,
    settings: HsmSettings,
    state: Mutex<State>,
    returned: Condvar,
    /// Held alone by whoever makes objects.
    making: RwLock<()>,
}

#[derive(Default)]
struct State {
    login: Option<Login>,
    /// Counts logins, so that sessions of an earlier one are not used again.
    generation: u64,
    idle: Vec<Session>,
    /// Sessions in use.
    lent: usize,
    /// A PIN that the token has refused. A token locks after a few of them.
    refused: Option<(Zeroizing<String>, RvError)>,
}

/// A login lasts as long as any session, so one is kept for it.
struct Login {
    slot: Slot,
    _session: Session,
}

impl Sessions {
    pub fn open(settings: HsmSettings) -> Result<Self, Error> {
        let failed = |source| Error::Module { path: settings.module.clone(), source };
        let module = Pkcs11::new(&settings.module).map_err(failed)?;
        let sessions =
            Self { module, settings, state: Mutex::default(), returned: Condvar::new(), making: RwLock::default() };
        sessions.connect(&mut sessions.lock())?;
        Ok(sessions)
    }

    /// Does some work in a session. If the session turns out to be lost, logs in and does it once more.
    pub fn with<T>(&self, work: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Error> {
        let _others = self.making.read().unwrap_or_else(PoisonError::into_inner);
        self.twice(work)
    }

    /// The same for work that makes objects, while no other work is done.
    ///
    /// SoftHSM fails the creation of an object that somebody looks at before it is whole.
    pub fn alone<T>(&self, work: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Error> {
        let _alone = self.making.write().unwrap_or_else(PoisonError::into_inner);
        self.twice(work)
    }

    fn twice<T>(&self, work: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Error> {
        match self.once(&work) {
            Err(e) if e.is_lost() => {
                tracing::warn!("logging in to the token again: {e}");
                self.once(&work)
            }
            done => done,
        }
    }

    fn once<T>(&self, work: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Error> {
        let mut lent = self.lend()?;
        let done = lent.session.as_ref().map_or(Err(Error::Busy), &work);
        if let Err(e) = &done {
            // An operation may still be under way in it.
            lent.session = None;
            if e.is_lost() {
                self.forget(lent.generation);
            }
        }
        done
    }

    fn lend(&self) -> Result<Lent<'_>, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while state.lent >= MAX_SESSIONS {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Busy);
            }
            state = self.returned.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let slot = self.connect(&mut state)?;
        let session = match state.idle.pop() {
            Some(session) => session,
            None => self.module.open_rw_session(slot).map_err(|source| {
                let error = Error::Failed { what: "opening a session", source };
                if error.is_lost() {
                    state.forget();
                }
                error
            })?,
        };
        state.lent += 1;
        Ok(Lent { sessions: self, session: Some(session), generation: state.generation })
    }

    /// The token's slot, after a login if there is none.
    fn connect(&self, state: &mut State) -> Result<Slot, Error> {
        if let Some(login) = &state.login {
            return Ok(login.slot);
        }
        match self.module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            // Another part of this process may use the same module.
            Ok(()) | Err(Cause::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(source) => return Err(Error::Module { path: self.settings.module.clone(), source }),
        }
        let slot = self.slot()?;
        let pin = self.settings.pin.read()?;
        if let Some((refused, code)) = &state.refused
            && *refused == pin
        {
            return Err(Error::PinRefused(*code));
        }
        let session = self.module.open_rw_session(slot).map_err(doing("opening a session"))?;
        match session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
            Ok(()) | Err(Cause::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Cause::Pkcs11(code, _)) if is_refusal(code) => {
                state.refused = Some((pin, code));
                return Err(Error::PinRefused(code));
            }
            Err(source) => return Err(Error::Failed { what: "logging in", source }),
        }
        state.generation += 1;
        state.login = Some(Login { slot, _session: session });
        Ok(slot)
    }

    fn slot(&self) -> Result<Slot, Error> {
        let slots = self.module.get_slots_with_token().map_err(doing("listing tokens"))?;
        let found = match &self.settings.token {
            Token::Index(index) => slots.get(*index).copied(),
            Token::Label(label) => slots.iter().copied().find(|slot| {
                let info = self.module.get_token_info(*slot);
                info.is_ok_and(|info| info.token_initialized() && info.label().trim_end() == label)
            }),
        };
        found.ok_or_else(|| {
            let wanted = match &self.settings.token {
                Token::Index(index) => format!("at slot index {index}"),
                Token::Label(label) => format!("with label \"{label}\""),
            };
            Error::NoToken { wanted, present: slots.len() }
        })
    }

    /// Ends a login, unless it has been replaced in the meantime.
    fn forget(&self, generation: u64) {
        let mut state = self.lock();
        if state.generation == generation {
            state.forget();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self) {
        self.idle.clear();
        self.login = None;
    }
}

/// A session out of the pool, which gets it back.
struct Lent<'a> {
    sessions: &'a Sessions,
    session: Option<Session>,
    generation: u64,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.sessions.lock();
        state.lent -= 1;
        if self.generation == state.generation && state.login.is_some() {
            state.idle.extend(self.session.take());
        }
        drop(state);
        self.sessions.returned.notify_one();
    }
}

/// The objects that match, at most a few hundred.
///
/// Whoever is not logged in sees fewer objects and no error, so finding nothing counts only after a look at the login.
pub(crate) fn find(session: &Session, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Error> {
    let found: Result<Vec<_>, _> =
        session.iter_objects(template).map_err(doing("looking for an object"))?.take(MAX_FOUND).collect();
    let found = found.map_err(doing("looking for an object"))?;
    if found.is_empty() {
        let info = session.get_session_info().map_err(doing("looking at a session"))?;
        if !matches!(info.session_state(), SessionState::RwUser) {
            let source = Cause::Pkcs11(RvError::UserNotLoggedIn, Function::FindObjects);
            return Err(Error::Failed { what: "looking for an object", source });
        }
    }
    Ok(found)
}

fn is_refusal(code: RvError) -> bool {
    use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked, UserPinNotInitialized};
    matches!(code, PinExpired | PinIncorrect | PinInvalid | PinLenRange | PinLocked | UserPinNotInitialized)
}

/// Most operations at a time.
pub const MAX_SESSIONS: usize = 8;
/// How long an operation waits for a session.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_FOUND: usize = 256;
