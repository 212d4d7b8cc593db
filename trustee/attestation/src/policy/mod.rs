//! Rego policies: checked and parsed once, evaluated many times, each time bounded.
//!
//! Only regorus' interpreter in its Rego v1 syntax is used: its bytecode machine and its v0 mode let policies pass
//! that must not. Texts are bounded before they are parsed, a timer ends loops, and builtins whose cost one call can
//! choose are replaced by bounded ones.

mod bounds;
mod builtins;
mod tokens;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reference_values::Source;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig};
use serde_json::Value;

pub use bounds::{Refused, STACK};

/// A policy of package `policy`, ready to be evaluated.
///
/// A thread that compiles, evaluates or drops one needs [`STACK`] bytes of stack if the policy comes from others.
pub struct Policy {
    engine: Engine,
}

/// What a rule of a policy is evaluated over.
pub struct Question {
    /// `input` in the policy.
    pub input: regorus::Value,
    /// `data` in the policy, an object, beside the policy's own package.
    pub data: Option<regorus::Value>,
}

/// The reference values that a policy asked for, in order: name and registered value.
pub type Queried = Vec<(String, Option<Value>)>;

impl Policy {
    /// Checks and parses a policy. It can take long for the CPU: see [`Policy::compile_aside`].
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Refused`], [`Error::Package`], or [`Error::Syntax`] with line and column.
    pub fn compile(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::TooLarge);
        }
        bounds::check(text)?;
        let mut engine = Engine::new();
        engine.set_policy_length_config(LENGTHS);
        engine.set_execution_timer_config(TIMER);
        let package = engine.add_policy(SOURCE.to_owned(), text.to_owned()).map_err(syntax)?;
        if package != PACKAGE {
            return Err(Error::Package(excerpt(package.trim_start_matches("data."))));
        }
        for module in engine.get_modules() {
            bounds::check_cycles(module)?;
        }
        builtins::bound(&mut engine).map_err(syntax)?;
        // The first evaluation analyses the rules; what is wrong with them beyond syntax shows here.
        engine.eval_query("true".to_owned(), false).map_err(syntax)?;
        Ok(Self { engine })
    }

    /// [`Policy::compile`] on a thread that may block.
    ///
    /// # Errors
    /// As [`Policy::compile`]; [`Error::Slow`] after five seconds.
    pub async fn compile_aside(text: String) -> Result<Self, Error> {
        let compiling = tokio::task::spawn_blocking(move || Self::compile(&text));
        match tokio::time::timeout(COMPILE_TIME, compiling).await {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_)) => Err(Error::Syntax("the parser gave up".to_owned())),
            Err(_) => Err(Error::Slow),
        }
    }

    /// The value of `data.policy.<rule>`; nothing if the policy has no such rule or leaves it undefined.
    ///
    /// # Errors
    /// [`Error::Evaluation`] if the rule fails or takes longer than 100 ms.
    pub fn evaluate(&self, rule: &str, question: Question) -> Result<Option<Value>, Error> {
        Self::ask(self.engine.clone(), rule, question)
    }

    /// The same within a millisecond, which every thread can spare: most policies need a tenth of it. Nothing if it
    /// fails or takes longer, which [`Policy::evaluate`] tells apart.
    pub fn evaluate_promptly(&self, rule: &str, question: Question) -> Option<Option<Value>> {
        Self::ask(self.prompt().engine, rule, question).ok()
    }

    /// The same policy, of which each rule fails after a millisecond.
    pub fn prompt(&self) -> Self {
        let mut engine = self.engine.clone();
        engine.set_execution_timer_config(PROMPT);
        Self { engine }
    }

    fn ask(mut engine: Engine, rule: &str, question: Question) -> Result<Option<Value>, Error> {
        if let Some(data) = question.data {
            engine.add_data(data).map_err(failed)?;
        }
        engine.set_input(question.input);
        value_of(&mut engine, rule)
    }

    /// The values of several rules, as [`Policy::evaluate`], for a policy that may call
    /// `query_reference_value(name)`. An unknown reference value is `null`; each is asked for once. What was asked for
    /// is added to `queried`, even where the evaluation fails.
    ///
    /// # Errors
    /// As [`Policy::evaluate`]; [`Error::ReferenceValues`] if the source does not answer.
    pub fn evaluate_with<const N: usize>(
        &self,
        rules: [&str; N],
        input: regorus::Value,
        source: &Arc<dyn Source>,
        queried: &mut Queried,
    ) -> Result<[Option<Value>; N], Error> {
        let mut engine = self.engine.clone();
        let asked = Arc::new(Mutex::new(Asked { queried: std::mem::take(queried), failed: None }));
        let (source, log) = (source.clone(), asked.clone());
        let query = move |parameters: Vec<regorus::Value>| {
            let [regorus::Value::String(name)] = parameters.as_slice() else {
                anyhow::bail!("query_reference_value takes the name of a reference value, a string")
            };
            let value = log.lock().unwrap_or_else(PoisonError::into_inner).ask(name, source.as_ref())?;
            Ok(value.map_or(regorus::Value::Null, regorus::Value::from))
        };
        engine.add_extension("query_reference_value".to_owned(), 1, Box::new(query)).map_err(failed)?;
        engine.set_input(input);

        let mut values = [const { None }; N];
        let mut result = Ok(());
        for (rule, value) in rules.iter().zip(&mut values) {
            match value_of(&mut engine, rule) {
                Ok(found) => *value = found,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        *queried = std::mem::take(&mut asked.queried);
        match asked.failed.take() {
            Some(cause) => Err(Error::ReferenceValues(cause)),
            None => result.map(|()| values),
        }
    }
}

/// Why a policy was refused, or gave no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the policy is larger than 1 MiB")]
    TooLarge,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the policy is of package \"{0}\"; begin it with: package policy")]
    Package(String),
    #[error("the policy can't be parsed as Rego v1: {0}")]
    Syntax(String),
    #[error("parsing the policy takes more than five seconds; simplify it")]
    Slow,
    #[error("the policy failed: {0}")]
    Evaluation(String),
    #[error("the reference values that the policy needs can't be had: {0}; next: try again later")]
    ReferenceValues(String),
}

/// What one evaluation asked for so far.
struct Asked {
    queried: Queried,
    failed: Option<String>,
}

impl Asked {
    fn ask(&mut self, name: &str, source: &dyn Source) -> anyhow::Result<Option<Value>> {
        if let Some((_, value)) = self.queried.iter().find(|(known, _)| known == name) {
            return Ok(value.clone());
        }
        if self.queried.len() >= MAX_QUERIED {
            anyhow::bail!("more than {MAX_QUERIED} reference values");
        }
        let value = source.query(name).inspect_err(|e| self.failed = Some(e.to_string()))?;
        self.queried.push((name.to_owned(), value.clone()));
        Ok(value)
    }
}

fn value_of(engine: &mut Engine, rule: &str) -> Result<Option<Value>, Error> {
    // Evaluating a rule that doesn't exist is an error that can't be told from others.
    if !engine.has_declared_rule_rooted_at(SOURCE, rule).map_err(failed)? {
        return Ok(None);
    }
    match engine.eval_rule(format!("{PACKAGE}.{rule}")).map_err(failed)? {
        regorus::Value::Undefined => Ok(None),
        value => serde_json::to_value(&value).map(Some).map_err(|e| Error::Evaluation(e.to_string())),
    }
}

fn failed(error: anyhow::Error) -> Error {
    Error::Evaluation(excerpt(&error.to_string()))
}

fn syntax(error: anyhow::Error) -> Error {
    Error::Syntax(excerpt(&one_line(&error.to_string())))
}

/// The parser's `--> file:line:column` and its reason, without the picture of the source between them.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let picture = |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    let kept: Vec<&str> = lines.filter(|line| !picture(line)).map(|line| line.trim_start_matches("--> ")).collect();
    kept.join(": ")
}

fn excerpt(text: &str) -> String {
    text.trim().chars().take(600).collect()
}

const SOURCE: &str = "policy.rego";
const PACKAGE: &str = "data.policy";
const MAX_TEXT: usize = 1 << 20;
const MAX_QUERIED: usize = 256;
const COMPILE_TIME: Duration = Duration::from_secs(5);
const TIMER: ExecutionTimerConfig =
    ExecutionTimerConfig { limit: Duration::from_millis(100), check_interval: NonZeroU32::new(64).expect("not zero") };
const PROMPT: ExecutionTimerConfig =
    ExecutionTimerConfig { limit: Duration::from_millis(1), check_interval: NonZeroU32::new(16).expect("not zero") };
/// Policies with the digests of many images have long lines.
const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::new(16 * 1024).expect("not zero"),
    max_file_bytes: NonZeroUsize::new(MAX_TEXT).expect("not zero"),
    max_lines: NonZeroUsize::new(40_000).expect("not zero"),
};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_prompt_evaluation_is_given_up_soon_and_says_the_same_in_time() {
        let policy = |text: &str| Policy::compile(&format!("package policy\n{text}")).unwrap();
        let question = || Question { input: json!({}).into(), data: Some(json!({ "plugin": "resource" }).into()) };
        let quick = policy("allow if data.plugin == \"resource\"");
        assert_eq!(quick.evaluate_promptly("allow", question()), Some(Some(json!(true))));
        assert_eq!(quick.evaluate_promptly("expected", question()), Some(None));
        let slow =
            policy("allow if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a + b == 0 }");
        assert_eq!(slow.evaluate_promptly("allow", question()), None);
        assert!(slow.evaluate("allow", question()).is_err());
    }

    fn allow(text: &str, input: Value) -> Result<Option<Value>, Error> {
        let policy = Policy::compile(&format!("package policy\n{text}"))?;
        policy.evaluate("allow", Question { input: input.into(), data: None })
    }

    #[test]
    fn a_rule_has_a_value_or_is_undefined() {
        for (text, expected) in [
            ("allow := true", Some(json!(true))),
            ("import rego.v1\ndefault allow := false\nallow if input.a == 1", Some(json!(true))),
            ("allow if input.a == 2", None),
            ("other := true", None),
            ("allow := {\"list\": [1, \"x\", null]}", Some(json!({ "list": [1, "x", null] }))),
            ("allow if regex.match(`^x[(]$`, \"x(\")", Some(json!(true))),
            ("allow := count(numbers.range(3, 1))", Some(json!(3))),
        ] {
            assert_eq!(allow(text, json!({ "a": 1 })), Ok(expected), "{text}");
        }
    }

    /// In regorus' bytecode machine this rule is true.
    #[test]
    fn a_missing_member_makes_a_rule_undefined() {
        assert_eq!(allow("allow if { x := input.missing }", json!({})), Ok(None));
        assert_eq!(allow("default allow := false\nallow if { x := input.missing }", json!({})), Ok(Some(json!(false))));
    }

    #[test]
    fn what_is_no_policy_is_refused_with_a_reason() {
        assert!(matches!(Policy::compile("allow := true"), Err(Error::Syntax(_))));
        assert!(matches!(Policy::compile("package policy\nallow if {"), Err(Error::Syntax(_))));
        assert!(matches!(Policy::compile("package policy\nallow { input.a }"), Err(Error::Syntax(_))));
        assert!(matches!(Policy::compile("package policy\nallow if x == 1"), Err(Error::Syntax(_))));
        assert_eq!(Policy::compile("package other\nallow := true").err(), Some(Error::Package("other".to_owned())));
        assert_eq!(Policy::compile(&"#".repeat(MAX_TEXT + 1)).err(), Some(Error::TooLarge));
    }

    #[test]
    fn a_reason_is_one_line_with_its_place() {
        for text in ["", "nonsense", "package policy\nallow if {", "package policy\n\nallow if x == 1"] {
            let Err(Error::Syntax(reason)) = Policy::compile(text) else { panic!("{text:?} passed") };
            assert!(reason.starts_with("policy.rego:") && !reason.contains('\n'), "{reason}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_before_it_is_parsed() {
        for (open, close) in [("[", "]"), ("{", "}"), ("(", ")")] {
            let text = format!("package policy\nallow := {}1{}", open.repeat(31), close.repeat(31));
            assert_eq!(Policy::compile(&text).err(), Some(Error::Refused(Refused::Nested(2))));
        }
        let unclosed = format!("package policy\nx := \"\nallow := {}1", "[".repeat(31));
        assert_eq!(Policy::compile(&unclosed).err(), Some(Error::Refused(Refused::Nested(3))));
    }

    #[test]
    fn loops_and_greedy_builtins_end_with_an_error() {
        for rules in [
            "allow if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a + b == 0 }",
            "allow := numbers.range(1, 30000000)",
            "allow := numbers.range(1, 1000000000000000)",
            "allow := numbers.range_step(1, 9, 0)",
            "allow := bits.lsh(1, 100000000000)",
            "allow := sprintf(\"%9999999999d\", [1])",
        ] {
            assert!(matches!(allow(rules, json!({})), Err(Error::Evaluation(_))), "{rules}");
        }
        let modest = "allow := [bits.lsh(1, 3), sprintf(\"%03d\", [7])]";
        assert_eq!(allow(modest, json!({})), Ok(Some(json!([8, "007"]))));
    }

    #[test]
    fn recursion_is_refused_before_it_ends_the_stack() {
        for text in [
            "f(x) := f(x + 1)\nallow if f(1)",
            "f(x) := g(x)\ng(x) := y if { y := f(x) }\nallow if f(1)",
            "f(x) if { data.policy.f(x) }\nallow if f(1)",
            "f(x) if { data[\"policy\"].f(x) }\nallow if f(1)",
            "f(x) if { data.policy[\"f\"](x) }\nallow if f(1)",
            "f(x) if { x == 1 } else := f (x)\nallow if f(1)",
            "f(x) if { g(x) with g as f }\ng(x) if x\nallow if f(1)",
            "import data.policy.f as h\nf(x) := h(x)\nallow if f(1)",
            "import data.policy as p\nf(x) := p.f(x)\nallow if f(1)",
            "allow if b\nb if allow",
            "f(x) if { b }\nb if f(1)\nallow if b",
            "f(x) := [y | some z in [x]; y := f(z)]\nallow if f(1)",
            "allow if { some x in data.policy; x }",
            "allow if { some x in walk(data); x }",
        ] {
            let refused = allow(text, json!({}));
            assert!(matches!(refused, Err(Error::Refused(_) | Error::Syntax(_))), "{text}: {refused:?}");
        }
        let fine = "f(x) := x + 1 # f(x)\ng(x) := f(f(x)) if { \"f(1)\" != `g(1)` }\nallow if g(1) == 3";
        assert_eq!(allow(fine, json!({})), Ok(Some(json!(true))));
    }

    #[test]
    fn the_longest_policies_that_are_accepted_fit_the_stack() {
        let chain = |n: usize, f: &dyn Fn(usize) -> String| (0..n).map(f).collect::<String>();
        for (n, accepted) in [(20, true), (900, true), (5_000, false)] {
            let rules = chain(n, &|i| format!("r{i} if r{}\n", i + 1)) + &format!("r{n} := true\nallow if r0");
            let functions =
                chain(n, &|i| format!("f{i}(x) := f{}(x)\n", i + 1)) + &format!("f{n}(x) := x\nallow if f0(true)");
            let sums = chain(n / 10, &|i| format!("s{i} := {}s{}\n", "1 + ".repeat(100), i + 1))
                + &format!("s{} := 1\nallow if s0 > 0", n / 10);
            for text in [rules, functions, sums] {
                let evaluating = std::thread::Builder::new().stack_size(STACK);
                let answer = evaluating.spawn(move || allow(&text, json!({}))).unwrap().join().unwrap();
                let expected = if accepted { Ok(Some(json!(true))) } else { Err(Error::Refused(Refused::Rules)) };
                // A long chain may also run out of time, never out of stack.
                assert!(
                    answer == expected || (accepted && matches!(answer, Err(Error::Evaluation(_)))),
                    "{n}: {answer:?}"
                );
            }
        }
    }

    #[test]
    fn a_source_that_does_not_answer_is_told_from_a_policy_that_fails() {
        struct Down;
        impl Source for Down {
            fn query(&self, name: &str) -> Result<Option<Value>, reference_values::Error> {
                Err(reference_values::Error::Name(name.to_owned()))
            }
        }
        let text = "package policy\nallow := query_reference_value(\"a\")\nother := 1";
        let policy = Policy::compile(text).unwrap();
        let (source, mut queried): (Arc<dyn Source>, _) = (Arc::new(Down), Queried::new());
        let answer = policy.evaluate_with(["other", "allow"], regorus::Value::new_object(), &source, &mut queried);
        assert!(matches!(answer, Err(Error::ReferenceValues(_))), "{answer:?}");
    }

    #[test]
    fn data_belongs_to_one_question() {
        let policy = Policy::compile("package policy\nallow if data[\"resource-path\"] == [\"a\", \"b\"]").unwrap();
        let ask = |path: Value| {
            let data = Some(json!({ "resource-path": path }).into());
            policy.evaluate("allow", Question { input: json!({}).into(), data })
        };
        assert_eq!(ask(json!(["a", "b"])), Ok(Some(json!(true))));
        assert_eq!(ask(json!(["a"])), Ok(None));
    }
}
