//! What parsing and evaluating a policy can cost, bounded before it is parsed: the parser's time doubles with each
//! level of brackets, and neither parser nor interpreter bounds its own stack. A stack that ends takes the process
//! with it.
//!
//! Without a cycle among them, no rule is entered twice at a time: so no evaluation takes more stack than all rules
//! together, each at its deepest and with all of its loops inside each other.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Module, Rule, RuleHead};

use super::tokens::{References, Step, Token, Tokens, names};

/// The stack that a thread needs which compiles, evaluates or drops policies, in bytes.
pub const STACK: usize = 32 << 20;

/// Why a text is not even parsed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("line {0} of the policy nests brackets more than {MAX_DEPTH} levels deep; divide the rule")]
    Nested(usize),
    #[error("line {0} of the policy: too much text is inside of too many brackets; divide the rule")]
    Work(usize),
    #[error("line {0} of the policy: an expression has more than {MAX_LINKS} operators, brackets and dots; divide it")]
    Expression(usize),
    #[error("the policy has more rules, or longer ones, than can be evaluated; leave some out")]
    Rules,
    #[error("line {0} of the policy: \"with\" is not available, since it lets functions call themselves")]
    With(usize),
    #[error(
        "line {0} of the policy: data can only be read as data.name, data[\"name\"] and data.policy.name, and can't be \
         imported"
    )]
    Data(usize),
    #[error("rule or function {0} of the policy may lead to itself; give rules and variables different names")]
    Cycle(String),
}

/// Checks a text before it is parsed.
///
/// # Errors
/// Any [`Refused`] but [`Refused::Cycle`].
pub(super) fn check(text: &str) -> Result<(), Refused> {
    let mut tokens = Tokens::new(text);
    let mut references = References::default();
    let (mut level, mut outer) = (Level::default(), Vec::new());
    let (mut stack, mut work, mut seen) = (0, 0_u64, 0);
    let mut continued = true;
    while let Some(token) = tokens.next() {
        match references.follow(token) {
            Step::Name(_) | Step::Other => {}
            Step::With => return Err(Refused::With(tokens.line)),
            Step::Data => return Err(Refused::Data(tokens.line)),
        }
        work += ((tokens.at - seen) as u64) << outer.len();
        seen = tokens.at;
        if work > MAX_WORK {
            return Err(Refused::Work(tokens.line));
        }

        let continues = matches!(token, Token::Operator | Token::Word("in"));
        if tokens.begins_line && !continued && !continues {
            level.end();
            if outer.is_empty() {
                stack += STATEMENT + std::mem::take(&mut level).deepest;
            }
        }
        continued = continues;
        match token {
            Token::Operator | Token::Dot | Token::Word("in") => level.links += 1,
            Token::Word("some" | "every" | "walk") => stack += LOOP,
            Token::Open | Token::Index => {
                // An index that is a variable stands for all of them.
                stack += if token == Token::Index { LOOP } else { 0 };
                level.links += 1;
                outer.push(std::mem::take(&mut level));
                if outer.len() > MAX_DEPTH {
                    return Err(Refused::Nested(tokens.line));
                }
            }
            Token::Close => level = level.close(outer.pop().unwrap_or_default()),
            Token::Separator => level.end(),
            Token::Word(_) | Token::Text(_) => {}
        }
        if level.links > MAX_LINKS || level.deepest.max(level.present()) > MAX_DEEPEST {
            return Err(Refused::Expression(tokens.line));
        }
    }
    if references.follow(Token::Separator) == Step::Data {
        return Err(Refused::Data(tokens.line));
    }
    // What is still open counts as well.
    while let Some(around) = outer.pop() {
        level = level.close(around);
    }
    level.end();
    if stack + STATEMENT + level.deepest > STACK / MARGIN { Err(Refused::Rules) } else { Ok(()) }
}

/// Checks that no rule or function of a parsed policy may lead to itself. What a rule's text names, it may evaluate.
///
/// # Errors
/// [`Refused::Cycle`].
pub(super) fn check_cycles(module: &Module) -> Result<(), Refused> {
    let text = module.package.span.source.get_contents().as_str();
    let mut rules: Vec<_> = module.policy.iter().collect();
    rules.sort_by_key(|rule| rule.span().start);
    let ends = rules.iter().skip(1).map(|rule| rule.span().start as usize).chain([text.len()]);

    let mut named: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (rule, end) in rules.iter().zip(ends) {
        let Some(rule_name) = names(head(rule)).next() else { continue };
        let mut words = names(text.get(rule.span().start as usize..end).unwrap_or_default());
        // The first is the one in its own head.
        words.find(|word| *word == rule_name);
        named.entry(rule_name).or_default().extend(words);
    }

    // Rules that lead to no other are taken away until none is left, or those on cycles and before them.
    let rules: BTreeSet<&str> = named.keys().copied().collect();
    let mut before: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (rule, words) in &mut named {
        words.retain(|word| rules.contains(word));
        words.iter().for_each(|word| before.entry(word).or_default().push(rule));
    }
    let mut ends: Vec<&str> = named.iter().filter(|(_, words)| words.is_empty()).map(|(rule, _)| *rule).collect();
    while let Some(end) = ends.pop() {
        named.remove(end);
        for rule in before.remove(end).into_iter().flatten() {
            let Some(words) = named.get_mut(rule) else { continue };
            words.remove(end);
            if words.is_empty() {
                ends.push(rule);
            }
        }
    }
    match named.keys().next() {
        Some(rule) => Err(Refused::Cycle(rule.chars().take(MAX_SHOWN).collect())),
        None => Ok(()),
    }
}

/// A rule's name as it is written.
fn head(rule: &Rule) -> &str {
    match rule {
        Rule::Spec { head: RuleHead::Func { refr, .. }, .. }
        | Rule::Spec { head: RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. }, .. }
        | Rule::Default { refr, .. } => refr.span().text(),
    }
}

/// The expression that is being read inside of one pair of brackets, and the deepest one there so far.
#[derive(Default)]
struct Level {
    /// Its operators, dots and brackets.
    links: usize,
    /// The stack of what is in its brackets, in bytes.
    inner: usize,
    /// The most stack that an expression here took, in bytes.
    deepest: usize,
}

impl Level {
    fn present(&self) -> usize {
        self.links * LINK + self.inner
    }

    /// Ends the expression.
    fn end(&mut self) {
        self.deepest = self.deepest.max(self.present());
        (self.links, self.inner) = (0, 0);
    }

    /// Ends the brackets, and goes on with what is around them.
    fn close(mut self, mut around: Self) -> Self {
        self.end();
        around.inner = around.inner.max(self.deepest + BRACKET);
        around
    }
}

const MAX_DEPTH: usize = 10;
/// Bytes of text, each counted twice for every bracket around it.
const MAX_WORK: u64 = 256 << 20;
/// Bytes of stack for entering a rule, a loop, a pair of brackets and an operator: about 5300, 1200, 2300 and 600 were
/// measured.
const STATEMENT: usize = 8 << 10;
const LOOP: usize = 2 << 10;
const BRACKET: usize = 4 << 10;
const LINK: usize = 1 << 10;
/// For what was not measured.
const MARGIN: usize = 2;
const MAX_LINKS: usize = 500;
/// What was parsed may be dropped on a thread with an ordinary stack.
const MAX_DEEPEST: usize = 1000 * LINK;
const MAX_SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn brackets_are_counted_outside_of_strings_and_comments() {
        let deep = "[".repeat(11);
        for (text, fine) in [
            (deep.clone(), false),
            ("[".repeat(10), true),
            ("x := [1]\n".repeat(1000), true),
            (format!("x := \"{deep}\""), true),
            (format!("x := `\n{deep}`"), true),
            (format!("# {deep}\nx := 1"), true),
            (format!("# \" \n{deep}"), false),
            (format!("x := \"\\\"{deep}\""), true),
            (format!("x := \"\\\\\"{deep}"), false),
            (format!("x := `\\`{deep}"), false),
            (format!("x := \"open\n{deep}"), false),
        ] {
            assert_eq!(check(&text).is_ok(), fine, "{text:?}");
        }
        assert_eq!(check(&format!("\n\n{deep}")), Err(Refused::Nested(3)));
        assert_eq!(check(&format!("{}{}a", "{".repeat(10), " ".repeat(1 << 20))), Err(Refused::Work(1)));
    }

    #[test]
    fn operators_in_one_expression_are_bounded() {
        for (start, repeated, end) in [
            ("", "1 + ", "1"),
            ("", "1 == ", "1"),
            ("", "- ", "1"),
            ("", "1 +\n", "1"),
            ("1", "\n  - 1", ""),
            ("1", " in x", ""),
            ("1", "\nin x", ""),
            ("input", ".a", ""),
            ("input", "[0]", ""),
            ("x", "[\"a\"]", ""),
        ] {
            let text = |n: usize| format!("x := {start}{}{end}\n", repeated.repeat(n));
            assert_eq!(check(&text(200)), Ok(()), "{repeated:?}");
            assert!(matches!(check(&text(600)), Err(Refused::Expression(_))), "{repeated:?}");
        }
        let list = format!("x := [{}]", "{\"a\": 1 + 2, \"b\": a.b}, ".repeat(10_000));
        assert_eq!(check(&list), Ok(()));
        let lines = format!("x if {{\n{}}}", "\tinput.a == 1\n".repeat(10_000));
        assert_eq!(check(&lines), Ok(()));
    }

    #[test]
    fn loops_of_a_rule_are_inside_of_each_other() {
        for repeated in ["\tsome x in [1]\n", "\ta[i]\n", "\ta.b[i]; "] {
            let text = |n: usize| format!("x if {{\n{}}}", repeated.repeat(n));
            assert_eq!(check(&text(1_000)), Ok(()), "{repeated:?}");
            assert!(check(&text(50_000)).is_err(), "{repeated:?}");
        }
    }

    #[test]
    fn all_rules_together_are_bounded() {
        assert_eq!(check(&"x if y\n".repeat(1_000)), Ok(()));
        assert_eq!(check(&"x if y\n".repeat(100_000)), Err(Refused::Rules));
        let long = format!("x := {}1\n", "1 + ".repeat(400));
        assert_eq!(check(&long.repeat(10)), Ok(()));
        assert_eq!(check(&long.repeat(1_000)), Err(Refused::Rules));
        let around = format!("x := {}1{}", "[1 + ".repeat(9), format!("]{}", " + 1".repeat(300)).repeat(9));
        assert!(matches!(check(&around), Err(Refused::Expression(_))));
    }

    #[test]
    fn references_that_could_lead_anywhere_are_refused_with_their_line() {
        for text in [
            "x := data",
            "x := data[input.name]",
            "x := data.policy",
            "x := data.policy[input.name]",
            "x := data[\"policy\"].x",
            "x := data[`policy`].x",
            "x := data[\"\\u0070olicy\"].x",
            "x := data [\"a\"]",
            "import data.policy.f as g",
            "import data.policy as p",
            "import data[\"policy\"] as p",
            "import input as data",
            "x := data.",
        ] {
            assert_eq!(check(&format!("\n{text}")), Err(Refused::Data(2)), "{text}");
        }
        assert_eq!(check("\nx if f(1) with g as h"), Err(Refused::With(2)));
        for text in [
            "x := data.plugin[input.name]",
            "x := data[\"resource-path\"][0]",
            "x := data.policy.y[input.name]",
            "x := input.data[0].with",
            "x := \"data with\" # data with",
            "import rego.v1\nimport input.data as d",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\PC\\n\\\\\"`#.,:+()\\[\\]{}]{0,200}|(data|with|policy|[.\\[\\]\n \"])*") {
            let _ = check(&text);
        }
    }
}
