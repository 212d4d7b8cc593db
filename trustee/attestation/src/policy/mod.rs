//! Rego policies: checked and parsed once, evaluated many times, each time bounded.
//!
//! Only regorus' interpreter in its Rego v1 syntax is used: its bytecode machine and its v0 mode let policies pass
//! that must not. Parsing takes time exponential in the depth of brackets, so depth is bounded before it starts;
//! a timer ends loops, and builtins whose cost one call can choose are replaced by bounded ones.

mod depth;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reference_values::ReferenceValues;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig};
use serde_json::Value;

use depth::{Dependencies, depth_of_brackets, longest_expression};

/// A policy of package `policy`, ready to be evaluated.
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
    /// [`Error::TooLarge`], [`Error::TooDeep`], [`Error::TooLong`], [`Error::Recursion`], [`Error::Package`], or
    /// [`Error::Syntax`] with line and column.
    pub fn compile(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_TEXT {
            return Err(Error::TooLarge);
        }
        let depth = depth_of_brackets(text);
        if depth > MAX_DEPTH {
            return Err(Error::TooDeep { depth });
        }
        if longest_expression(text) > MAX_LINKS {
            return Err(Error::TooLong);
        }
        let mut engine = Engine::new();
        engine.set_policy_length_config(LENGTHS);
        engine.set_execution_timer_config(TIMER);
        let package = engine.add_policy(SOURCE.to_owned(), text.to_owned()).map_err(syntax)?;
        if package != PACKAGE {
            return Err(Error::Package(excerpt(package.trim_start_matches("data."))));
        }
        for module in engine.get_modules() {
            let dependencies = Dependencies::of(module);
            if dependencies.exceed(MAX_CHAIN) {
                return Err(Error::TooLong);
            }
            if let Some(name) = dependencies.recursive_function(MAX_CHAIN) {
                return Err(Error::Recursion(excerpt(name)));
            }
        }
        engine.add_extension("numbers.range".to_owned(), 2, Box::new(bounded_range)).map_err(syntax)?;
        engine.add_extension("numbers.range_step".to_owned(), 3, Box::new(refused_range_step)).map_err(syntax)?;
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
        evaluate(self.engine.clone(), rule, question)
    }

    /// As [`Policy::evaluate`], for a policy that may call `query_reference_value(name)`; what it asked for is
    /// added to `queried`. An unknown reference value is `null`.
    ///
    /// # Errors
    /// As [`Policy::evaluate`].
    pub fn evaluate_with(
        &self,
        rule: &str,
        question: Question,
        reference_values: &ReferenceValues,
        queried: &mut Queried,
    ) -> Result<Option<Value>, Error> {
        let mut engine = self.engine.clone();
        let asked = Arc::new(Mutex::new(std::mem::take(queried)));
        let (values, log) = (reference_values.clone(), asked.clone());
        let query = move |parameters: Vec<regorus::Value>| {
            let [regorus::Value::String(name)] = parameters.as_slice() else {
                anyhow::bail!("query_reference_value takes the name of a reference value, a string")
            };
            let value = values.query(name);
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() < MAX_QUERIED && !log.iter().any(|(known, _)| known.as_str() == name.as_ref()) {
                log.push((name.to_string(), value.clone()));
            }
            Ok(value.map_or(regorus::Value::Null, regorus::Value::from))
        };
        engine
            .add_extension("query_reference_value".to_owned(), 1, Box::new(query))
            .map_err(|e| Error::Evaluation(excerpt(&e.to_string())))?;
        let result = evaluate(engine, rule, question);
        *queried = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
        result
    }
}

/// Why a policy was refused, or gave no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the policy is larger than 1 MiB")]
    TooLarge,
    #[error("the policy nests brackets {depth} levels deep; split rules until it is {MAX_DEPTH} or less")]
    TooDeep { depth: usize },
    #[error("the policy is of package \"{0}\"; begin it with: package policy")]
    Package(String),
    #[error(
        "one rule of the policy leads to more than {MAX_CHAIN} others, or one expression has more than {MAX_LINKS} \
         operators; divide it"
    )]
    TooLong,
    #[error("function {0} of the policy may call itself; Rego has no recursion")]
    Recursion(String),
    #[error("the policy can't be parsed as Rego v1: {0}")]
    Syntax(String),
    #[error("parsing the policy takes more than five seconds; simplify it")]
    Slow,
    #[error("the policy failed: {0}")]
    Evaluation(String),
}

fn evaluate(mut engine: Engine, rule: &str, question: Question) -> Result<Option<Value>, Error> {
    let failed = |e: anyhow::Error| Error::Evaluation(excerpt(&e.to_string()));
    // Evaluating a rule that doesn't exist is an error that can't be told from others.
    if !engine.has_declared_rule_rooted_at(SOURCE, rule).map_err(failed)? {
        return Ok(None);
    }
    if let Some(data) = question.data {
        engine.add_data(data).map_err(failed)?;
    }
    engine.set_input(question.input);
    match engine.eval_rule(format!("{PACKAGE}.{rule}")).map_err(failed)? {
        regorus::Value::Undefined => Ok(None),
        value => serde_json::to_value(&value).map(Some).map_err(|e| Error::Evaluation(e.to_string())),
    }
}

/// `numbers.range` for ranges that can't exhaust memory.
fn bounded_range(parameters: Vec<regorus::Value>) -> anyhow::Result<regorus::Value> {
    let [from, to] = parameters.as_slice() else { anyhow::bail!("numbers.range takes two numbers") };
    let (from, to) = (from.as_i64()?, to.as_i64()?);
    if from.abs_diff(to) >= MAX_RANGE {
        anyhow::bail!("numbers.range is bounded to {MAX_RANGE} numbers");
    }
    let numbers: Vec<_> = (from.min(to)..=from.max(to)).map(regorus::Value::from).collect();
    Ok(regorus::Value::from(if from <= to { numbers } else { numbers.into_iter().rev().collect() }))
}

fn refused_range_step(_: Vec<regorus::Value>) -> anyhow::Result<regorus::Value> {
    anyhow::bail!("numbers.range_step is not available: use numbers.range")
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
const MAX_DEPTH: usize = 10;
/// On the 32 MiB of stack that a Trustee gives its threads this leaves each rule 160 KiB.
const MAX_CHAIN: usize = 200;
const MAX_LINKS: usize = 1_000;
const MAX_RANGE: u64 = 10_000;
const MAX_QUERIED: usize = 256;
const COMPILE_TIME: Duration = Duration::from_secs(5);
const TIMER: ExecutionTimerConfig =
    ExecutionTimerConfig { limit: Duration::from_millis(100), check_interval: NonZeroU32::new(64).expect("not zero") };
/// Policies with the digests of many images have long lines.
const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::new(16 * 1024).expect("not zero"),
    max_file_bytes: std::num::NonZeroUsize::new(MAX_TEXT).expect("not zero"),
    max_lines: std::num::NonZeroUsize::new(40_000).expect("not zero"),
};

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            assert_eq!(Policy::compile(&text).err(), Some(Error::TooDeep { depth: 31 }));
        }
        let unclosed = format!("package policy\nx := \"\nallow := {}1", "[".repeat(31));
        assert_eq!(Policy::compile(&unclosed).err(), Some(Error::TooDeep { depth: 31 }));
    }

    #[test]
    fn loops_and_greedy_builtins_end_with_an_error() {
        let grid = "allow if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a + b == 0 }";
        assert!(matches!(allow(grid, json!({})), Err(Error::Evaluation(_))));
        assert!(matches!(allow("allow := numbers.range(1, 30000000)", json!({})), Err(Error::Evaluation(_))));
        assert!(matches!(allow("allow := numbers.range(1, 1000000000000000)", json!({})), Err(Error::Evaluation(_))));
        assert!(!matches!(allow("allow if bits.lsh(1, 100000000000) > 1", json!({})), Ok(Some(Value::Bool(true)))));
    }

    #[test]
    fn recursion_is_refused_before_it_ends_the_stack() {
        for text in [
            "f(x) := f(x + 1)\nallow if f(1)",
            "f(x) := g(x)\ng(x) := y if { y := f(x) }\nallow if f(1)",
            "f(x) if { data.policy.f(x) }\nallow if f(1)",
            "f(x) if { x == 1 } else := f (x)\nallow if f(1)",
        ] {
            assert!(matches!(allow(text, json!({})), Err(Error::Recursion(_) | Error::Syntax(_))), "{text}");
        }
        let cyclic_rules = "a if b\nb if a\nallow if a";
        assert!(matches!(allow(cyclic_rules, json!({})), Err(Error::Evaluation(_) | Error::Syntax(_))));
        let through_a_rule = "f(x) if { b }\nb if f(1)\nallow if b";
        assert!(matches!(allow(through_a_rule, json!({})), Err(Error::Evaluation(_) | Error::Syntax(_))));
        let fine = "f(x) := x + 1 # f(x)\ng(x) := f(f(x)) if { \"f(1)\" != `g(1)` }\nallow if g(1) == 3";
        assert_eq!(allow(fine, json!({})), Ok(Some(json!(true))));
    }

    #[test]
    fn long_chains_are_refused_before_they_end_the_stack() {
        let chain = |n: usize, f: &dyn Fn(usize) -> String| (0..n).map(f).collect::<String>();
        for n in [20, MAX_CHAIN + 2, 5_000] {
            let rules = chain(n, &|i| format!("r{i} if r{}\n", i + 1)) + &format!("r{n} := true\nallow if r0");
            let functions =
                chain(n, &|i| format!("f{i}(x) := f{}(x)\n", i + 1)) + &format!("f{n}(x) := x\nallow if f0(true)");
            for text in [rules, functions] {
                let expected = if n > MAX_CHAIN { Err(Error::TooLong) } else { Ok(Some(json!(true))) };
                assert_eq!(allow(&text, json!({})), expected, "{n}");
            }
        }
        for (start, repeated, end) in [("", "1 + ", "1 > 0"), ("input", "[0]", ""), ("input", ".a", "")] {
            for (n, refused) in [(200, false), (1_001, true), (5_000, true)] {
                let expression = format!("allow if {start}{}{end}", repeated.repeat(n));
                assert_eq!(allow(&expression, json!({})) == Err(Error::TooLong), refused, "{n} times {repeated}");
            }
        }
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
