//! The policy: which requests of the host the guest's owner allows.
//!
//! A policy is Rego text in package `agent_policy`. A request of type `T` is allowed where the rule
//! `data.agent_policy.T` is `true`, or `{"allowed": true, "ops": [...]}` with JSON Patch operations on the state
//! that the policy keeps under `data.pstate`. Everything else is a denial: an undefined rule, another value, an
//! error, an evaluation that takes too long.

mod builtins;
mod decider;
mod depth;
mod nesting;
mod patch;
mod settled;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use regorus::utils::limits::{ExecutionTimerConfig, PolicyLengthConfig};
use regorus::{Engine, Value};
use serde_json::json;

use decider::Decider;
use patch::Operation;

/// A parsed policy together with the state it keeps. Cheap to ask from many tasks at once.
#[derive(Default)]
pub struct Policy {
    state: Arc<State>,
    decider: Decider,
}

impl Policy {
    /// Parses the text of a policy. May take a second of processor time for a large one.
    ///
    /// # Errors
    /// [`Error`] where the text is not Rego version 1 in package `agent_policy`, or exceeds the limits of this page.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let active = with_stack(|| Active::parse(text)).unwrap_or(Err(Error::Thread))?;
        Ok(Self { state: Arc::new(State::new(active)), decider: Decider::default() })
    }

    /// Whether the policy has any rule for requests of this type.
    pub(crate) fn mentions(&self, request: &str) -> bool {
        self.state.lock().active.mentions(request)
    }

    /// The answer to each request of that type, if it is known that the policy gives the same to all of them.
    ///
    /// It is known after the first one.
    pub fn settled(&self, request: &'static str) -> Option<Result<(), Denial>> {
        let current = self.state.lock();
        if !current.active.mentions(request) {
            return Some(Err(Denial::new(request, Reason::Missing)));
        }
        current.answers.get(request).cloned()
    }

    /// Asks whether a request of the host is allowed, and applies the change of state that comes with a yes.
    ///
    /// `request` is the name of its type, `input` the request in JSON. Blocks the thread until it is decided.
    ///
    /// # Errors
    /// [`Denial`] if it is not, with the reason that the host is told.
    pub fn decide(&self, request: &'static str, input: serde_json::Value) -> Result<(), Denial> {
        let state = Arc::clone(&self.state);
        self.decider.decide_blocking(move || state.decide(request, input)).unwrap_or_else(|| Err(no_thread(request)))
    }

    /// As [`Self::decide`], for callers inside of a runtime.
    pub(crate) async fn decision(&self, request: &'static str, input: serde_json::Value) -> Result<(), Denial> {
        let state = Arc::clone(&self.state);
        let decided = self.decider.decide(move || state.decide(request, input)).await;
        decided.unwrap_or_else(|| Err(no_thread(request)))
    }

    /// Puts another policy in this one's place, with fresh state.
    pub(crate) fn replace(&self, other: Self) {
        let mut other = other.state.lock().active.clone();
        let mut current = self.state.lock();
        other.generation = current.active.generation + 1;
        *current = Current { active: other, answers: BTreeMap::new() };
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").finish_non_exhaustive()
    }
}

/// The policy that is in force, with its state.
struct State(Mutex<Current>);

struct Current {
    active: Active,
    /// What those rules have said that say the same each time.
    answers: BTreeMap<&'static str, Result<(), Denial>>,
}

impl State {
    fn new(active: Active) -> Self {
        Self(Mutex::new(Current { active, answers: BTreeMap::new() }))
    }

    fn decide(&self, request: &'static str, input: serde_json::Value) -> Result<(), Denial> {
        let input = Value::from(input);
        loop {
            let asked = self.lock().active.clone();
            let answer = asked.evaluate(request, input.clone());
            let mut current = self.lock();
            let answer = match answer {
                Ok(operations) if operations.is_empty() => Ok(()),
                Ok(operations) => {
                    // Another request may have changed the state meanwhile: then the answer has to be found anew.
                    if current.active.generation != asked.generation {
                        continue;
                    }
                    let updated = current.active.update(&operations);
                    return updated.map_err(|cause| Denial::new(request, Reason::Operations(cause)));
                }
                Err(denial) => Err(denial),
            };
            current.settle(&asked, request, &answer);
            return answer;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // Nothing that panics runs under the lock, and the value is only ever replaced as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    /// Keeps an answer that was found with `asked`, if it is the one to each request of that type.
    fn settle(&mut self, asked: &Active, request: &'static str, answer: &Result<(), Denial>) {
        let settled = &self.active.settled;
        // Another policy has other rules. An evaluation that failed may have failed for the time that it took.
        let same = Arc::ptr_eq(settled, &asked.settled) && settled.contains(request);
        if same && !matches!(answer, Err(Denial { reason: Reason::Failed(_), .. })) {
            self.answers.insert(request, answer.clone());
        }
    }
}

impl Default for State {
    /// The policy of a guest whose owner gave it none: no container can be created.
    fn default() -> Self {
        let active = with_stack(|| Active::parse(DEFAULT)).unwrap_or(Err(Error::Thread));
        Self::new(active.expect("the policy that is part of the program is valid"))
    }
}

/// Why a text is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text has more bytes than a policy may have.
    #[error("policy has {0} bytes, {MAX_BYTES} are allowed; next: move data out of the policy")]
    TooLarge(usize),
    /// Parsing the text could take for ever.
    #[error("policy is nested too deeply: {0}; next: give inner values names of their own")]
    TooDeep(String),
    /// Evaluating the text could end the stack.
    #[error("policy could take too much to evaluate: {0}; next: write it otherwise")]
    TooLong(String),
    /// A rule or function leads to itself, or seems to.
    #[error(
        "rule {0} of the policy leads to itself; next: give rules and variables different names, and use no recursion"
    )]
    Recursion(String),
    /// The policy can't be parsed now.
    #[error("there is no thread to parse the policy; next: give the guest more memory")]
    Thread,
    /// The text is not Rego.
    #[error("policy is not Rego version 1: {0}; next: check it with `opa check --v1-compatible`")]
    Syntax(String),
    /// The text is Rego of another package.
    #[error("policy is not in package agent_policy; next: open it with `package agent_policy`")]
    Package,
}

/// A request that the policy does not allow. Its text goes to the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    request: &'static str,
    reason: Reason,
    prints: String,
}

impl Denial {
    fn new(request: &'static str, reason: Reason) -> Self {
        Self { request, reason, prints: String::new() }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, reason, prints } = self;
        write!(f, "{request} is blocked by policy: ")?;
        let rule = format_args!("rule data.agent_policy.{request}");
        let next = "next: change the rule in policy.rego of the pod's initdata, or the request";
        match reason {
            Reason::Missing => write!(
                f,
                "{rule} is not defined, so it is denied by default; next: add the rule to policy.rego in the pod's initdata"
            ),
            Reason::Undefined => write!(f, "{rule} is undefined for this request: no body of it holds; {next}"),
            Reason::False => write!(f, "{rule} is false for this request: no body of it holds; {next}"),
            Reason::OtherValue => {
                write!(f, "{rule} is neither a boolean nor an object with `allowed` and `ops`; next: correct the rule")
            }
            Reason::Failed(cause) => write!(f, "{rule} can't be evaluated: {cause}; next: correct the rule"),
            Reason::Operations(cause) => {
                write!(f, "{rule} gave operations that don't apply: {cause}; next: correct the rule")
            }
        }?;
        if !prints.is_empty() {
            write!(f, "; the policy printed: {prints}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Denial {}

#[derive(Clone, Debug, PartialEq)]
enum Reason {
    Missing,
    Undefined,
    False,
    OtherValue,
    Failed(String),
    Operations(String),
}

/// The engine that holds policy and state. Its clones share both until one is changed.
#[derive(Clone)]
struct Active {
    engine: Engine,
    generation: u64,
    /// The rules that say the same each time.
    settled: Arc<BTreeSet<String>>,
}

impl Active {
    fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_BYTES {
            return Err(Error::TooLarge(text.len()));
        }
        nesting::check(text).map_err(Error::TooDeep)?;
        depth::check(text).map_err(Error::TooLong)?;

        // The interpreter in version 1 mode: regorus' virtual machine and its version 0 mode both turn some rules
        // that should be undefined into `true`.
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(false);
        engine.set_gather_prints(true);
        engine.set_execution_timer_config(TIMER);
        engine.set_policy_length_config(LENGTH);
        let syntax = |e: &dyn fmt::Display| Error::Syntax(shorten(&e.to_string()));
        let package = engine.add_policy(FILE.to_owned(), text.to_owned()).map_err(|e| syntax(&e))?;
        if package != "data.agent_policy" {
            return Err(Error::Package);
        }
        if let Some(rule) = engine.get_modules().iter().find_map(|module| depth::cycle(module)) {
            return Err(Error::Recursion(shorten(&rule)));
        }
        let settled = engine.get_modules().first().map(|module| settled::rules(module)).unwrap_or_default();
        builtins::bound(&mut engine).map_err(|e| syntax(&e))?;
        engine.add_data(Value::from(json!({"pstate": {}}))).map_err(|e| syntax(&e))?;
        // Evaluating once finds what only the analysis before the first evaluation finds, and saves it later.
        let mut probe = engine.clone();
        probe.set_input(Value::new_object());
        let _ = probe.eval_rule("data.agent_policy.GuestDetailsRequest".to_owned());
        Ok(Self { engine, generation: 0, settled: Arc::new(settled) })
    }

    fn mentions(&self, request: &str) -> bool {
        self.engine.has_declared_rule_rooted_at(FILE, request).unwrap_or(false)
    }

    fn evaluate(&self, request: &'static str, input: Value) -> Result<Vec<Operation>, Denial> {
        if !self.mentions(request) {
            return Err(Denial::new(request, Reason::Missing));
        }
        let mut engine = self.engine.clone();
        engine.set_input(input);
        let result = engine.eval_rule(format!("data.agent_policy.{request}"));
        let reason = match result {
            Ok(Value::Bool(true)) => return Ok(Vec::new()),
            Ok(Value::Bool(false)) => Reason::False,
            Ok(Value::Undefined) => Reason::Undefined,
            Ok(value) => match Verdict::read(&value) {
                Some(Verdict { allowed: true, ops }) => return Ok(ops),
                Some(Verdict { allowed: false, .. }) => Reason::False,
                None => Reason::OtherValue,
            },
            Err(error) => Reason::Failed(shorten(&error.to_string())),
        };
        let prints = engine.take_prints().unwrap_or_default();
        Err(Denial { request, reason, prints: shorten(&prints.join(" | ")) })
    }

    fn update(&mut self, operations: &[Operation]) -> Result<(), String> {
        let mut data = serde_json::to_value(self.engine.get_data()).map_err(|e| e.to_string())?;
        Operation::apply_all(operations, &mut data)?;
        if data.to_string().len() > MAX_STATE {
            return Err(format!("the state would exceed {MAX_STATE} bytes"));
        }
        self.engine.clear_data();
        self.engine.add_data(Value::from(data)).map_err(|e| e.to_string())?;
        self.generation += 1;
        Ok(())
    }
}

/// The long form of a rule's value.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    allowed: bool,
    #[serde(default)]
    ops: Vec<Operation>,
}

impl Verdict {
    fn read(value: &Value) -> Option<Self> {
        value.as_object().ok()?;
        let verdict: Self = serde_json::from_value(serde_json::to_value(value).ok()?).ok()?;
        (verdict.ops.len() <= MAX_OPERATIONS).then_some(verdict)
    }
}

fn no_thread(request: &'static str) -> Denial {
    Denial::new(request, Reason::Failed("there is no thread for it".to_owned()))
}

/// Runs `work` on a thread with the stack that [`depth`] counts on, and waits for it. None where there is no thread.
fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(depth::STACK).spawn_scoped(scope, work).ok()?;
        thread.join().ok()
    })
}

/// One line of at most [`MAX_MESSAGE`] characters.
fn shorten(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

const DEFAULT: &str = include_str!("policy/default-policy.rego");
const FILE: &str = "policy.rego";
const MAX_BYTES: usize = 2 << 20;
const MAX_STATE: usize = 1 << 20;
const MAX_OPERATIONS: usize = 64;
const MAX_MESSAGE: usize = 1024;
/// Covers a loop over a large request on a slow processor; a decision usually takes well below a millisecond.
const TIMER: ExecutionTimerConfig =
    ExecutionTimerConfig { limit: Duration::from_secs(2), check_interval: NonZeroU32::new(64).unwrap() };
const LENGTH: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::new(64 << 10).unwrap(),
    max_file_bytes: NonZeroUsize::new(MAX_BYTES).unwrap(),
    max_lines: NonZeroUsize::new(200_000).unwrap(),
};

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod tests;
