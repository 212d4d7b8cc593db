//! Bounds the stack that parsing and evaluating a policy can take, since neither parser nor interpreter does, and a
//! stack that ends takes the guest with it.
//!
//! The scan knows words, strings, comments, brackets and operators, and nothing else of the language. Without a cycle
//! among them, no rule is entered twice at a time; so no evaluation takes more than all rules together, each at its
//! deepest and with all of its loops inside each other.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Module, Rule, RuleHead};

/// The stack for whatever parses, evaluates or drops a policy or a value of it.
pub(super) const STACK: usize = 64 << 20;

/// Checks a text before it is parsed.
///
/// # Errors
/// A sentence that names the line.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut tokens = Tokens::new(text);
    let mut paths = Paths::default();
    let (mut level, mut outer, mut total) = (Level::default(), Vec::new(), 0);
    let mut joined = true;
    while let Some(token) = tokens.next() {
        let refused = |why: &str| Err(format!("line {}: {why}", tokens.line));
        match paths.follow(token) {
            Step::Fine(_) => {}
            Step::With => return refused("\"with\" is not supported: it can make functions call themselves"),
            Step::Data => return refused("\"data\" is only supported as data.name or data.agent_policy.name"),
        }
        let continues = matches!(token, Token::Operator | Token::Word("in"));
        if tokens.new_line && !joined && !continues {
            level.end();
            if outer.is_empty() {
                total += STATEMENT + std::mem::take(&mut level).deepest;
            }
        }
        joined = continues;
        match token {
            Token::Operator | Token::Dot | Token::Word("in") => level.links += 1,
            Token::Word("some" | "every" | "walk") => total += LOOP,
            Token::Open | Token::Index => {
                // An index that is a variable stands for all of them.
                total += if token == Token::Index { LOOP } else { 0 };
                level.links += 1;
                outer.push(std::mem::take(&mut level));
            }
            Token::Close => level = level.close(outer.pop().unwrap_or_default()),
            Token::Separator => level.end(),
            Token::Word(_) | Token::Text => {}
        }
        if level.links > MAX_LINKS || level.deepest.max(level.links * LINK + level.inner) > MAX_DEEPEST {
            return refused("an expression has more than 500 operators, brackets and dots, or 1000 with those in it");
        }
    }
    if let Step::Data = paths.follow(Token::Separator) {
        return Err("the text ends inside a path".to_owned());
    }
    // What is still open counts as well.
    while let Some(around) = outer.pop() {
        level = level.close(around);
    }
    level.end();
    match total + STATEMENT + level.deepest > STACK / MARGIN {
        true => Err("it has more rules, or longer ones, than can be evaluated; next: leave some out".to_owned()),
        false => Ok(()),
    }
}

/// A rule or function that may lead to itself, by name alone. Rego has no recursion.
pub(super) fn cycle(module: &Module) -> Option<String> {
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (head, body) in rules(module) {
        let Some(name) = names(head).next() else { continue };
        let mut mentioned = names(body);
        // Its own name in its head.
        mentioned.find(|mentioned| *mentioned == name);
        graph.entry(name).or_default().extend(mentioned);
    }
    // Rules that lead to none, or to such rules only, are on no cycle.
    loop {
        let done: Vec<&str> = graph
            .iter()
            .filter(|(_, mentioned)| !mentioned.iter().any(|name| graph.contains_key(name)))
            .map(|(name, _)| *name)
            .collect();
        if done.is_empty() {
            return graph.keys().next().map(|name| (*name).to_owned());
        }
        graph.retain(|name, _| !done.contains(name));
    }
}

/// Each rule's head, and its text up to the next one's.
pub(super) fn rules(module: &Module) -> impl Iterator<Item = (&str, &str)> {
    let text = module.package.span.source.get_contents().as_str();
    let mut rules: Vec<_> = module.policy.iter().collect();
    rules.sort_by_key(|rule| rule.span().start);
    let ends: Vec<_> = rules.iter().skip(1).map(|rule| rule.span().start as usize).chain([text.len()]).collect();
    rules
        .into_iter()
        .zip(ends)
        .map(move |(rule, end)| (head(rule), text.get(rule.span().start as usize..end).unwrap_or_default()))
}

/// All words of a text that are in no string or comment.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    Tokens::new(text).filter_map(|token| match token {
        Token::Word(word) => Some(word),
        _ => None,
    })
}

fn head(rule: &Rule) -> &str {
    match rule {
        Rule::Spec { head: RuleHead::Func { refr, .. }, .. }
        | Rule::Spec { head: RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. }, .. }
        | Rule::Default { refr, .. } => refr.span().text(),
    }
}

/// The words that can be names of rules: those that are no members of something else.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    let mut paths = Paths::default();
    Tokens::new(text).filter_map(move |token| match paths.follow(token) {
        Step::Fine(name) => name,
        Step::With | Step::Data => None,
    })
}

/// The expression that is being read inside one pair of brackets, and the deepest one there so far.
#[derive(Default)]
struct Level {
    links: usize,
    inner: usize,
    deepest: usize,
}

impl Level {
    /// Ends the expression.
    fn end(&mut self) {
        self.deepest = self.deepest.max(self.links * LINK + self.inner);
        (self.links, self.inner) = (0, 0);
    }

    /// Ends the brackets, and goes on with what is around them.
    fn close(mut self, mut around: Self) -> Self {
        self.end();
        around.inner = around.inner.max(self.deepest + BRACKET);
        around
    }
}

/// Follows paths such as `data.agent_policy.name` from token to token.
#[derive(Default)]
struct Paths<'a> {
    before: Option<Token<'a>>,
    place: Place,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Place {
    #[default]
    Elsewhere,
    Data,
    DataDot,
    Package,
    PackageDot,
}

enum Step<'a> {
    Fine(Option<&'a str>),
    With,
    Data,
}

impl<'a> Paths<'a> {
    fn follow(&mut self, token: Token<'a>) -> Step<'a> {
        let before = self.before.replace(token);
        let first = before != Some(Token::Dot);
        let mut name = None;
        self.place = match (self.place, token) {
            (Place::Data, Token::Dot) => Place::DataDot,
            (Place::DataDot, Token::Word(PACKAGE)) => Place::Package,
            (Place::DataDot, Token::Word(_)) => Place::Elsewhere,
            (Place::Package, Token::Dot) => Place::PackageDot,
            (Place::PackageDot, Token::Word(word)) => {
                name = Some(word);
                Place::Elsewhere
            }
            (Place::Elsewhere, Token::Word("data")) if before == Some(Token::Word("import")) => return Step::Data,
            (Place::Elsewhere, Token::Word("data")) if first => Place::Data,
            (Place::Elsewhere, Token::Word("with")) if first => return Step::With,
            (Place::Elsewhere, Token::Word(word)) => {
                name = first.then_some(word);
                Place::Elsewhere
            }
            (Place::Elsewhere, _) => Place::Elsewhere,
            _ => return Step::Data,
        };
        Step::Fine(name)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text,
    Open,
    /// The bracket of an index.
    Index,
    Close,
    Dot,
    /// One character of one.
    Operator,
    Separator,
}

/// The tokens of a text; comments are none.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    /// Whether the last token is the first of its line.
    new_line: bool,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1, new_line: false }
    }

    /// Moves behind the comment or string that begins here. Only a raw string goes on behind the end of its line.
    fn skip_quoted(&mut self, quote: u8) {
        let bytes = self.text.as_bytes();
        self.at += 1;
        while let Some(byte) = bytes.get(self.at) {
            match (quote, byte) {
                (b'#' | b'"', b'\n') => return,
                (b'`', b'`') | (b'"', b'"') => {
                    self.at += 1;
                    return;
                }
                (b'"', b'\\') if bytes.get(self.at + 1) != Some(&b'\n') => self.at += 1,
                _ => self.line += usize::from(*byte == b'\n'),
            }
            self.at += 1;
        }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.new_line = false;
        loop {
            let start = self.at;
            let token = match *self.text.as_bytes().get(start)? {
                b'#' => {
                    self.skip_quoted(b'#');
                    continue;
                }
                quote @ (b'"' | b'`') => {
                    self.skip_quoted(quote);
                    return Some(Token::Text);
                }
                byte if is_word(byte) => {
                    self.at += self.text.bytes().skip(start).take_while(|byte| is_word(*byte)).count();
                    return Some(Token::Word(self.text.get(start..self.at).unwrap_or_default()));
                }
                b'\n' => {
                    self.line += 1;
                    self.new_line = true;
                    None
                }
                b'[' if self.text.as_bytes()[..start].last().is_some_and(|byte| is_end(*byte)) => Some(Token::Index),
                b'(' | b'[' | b'{' => Some(Token::Open),
                b')' | b']' | b'}' => Some(Token::Close),
                b'.' => Some(Token::Dot),
                b',' | b';' | b':' => Some(Token::Separator),
                b'+' | b'-' | b'*' | b'/' | b'%' | b'|' | b'&' | b'<' | b'>' | b'=' | b'!' => Some(Token::Operator),
                _ => None,
            };
            self.at += 1;
            if token.is_some() {
                return token;
            }
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether a term can end with this.
fn is_end(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b')' | b']' | b'}' | b'"' | b'`')
}

const PACKAGE: &str = "agent_policy";
/// Bytes of stack for entering a rule, a loop, a pair of brackets and an operator: about 5300, 1200, 2300 and 600 were
/// measured.
const STATEMENT: usize = 8 << 10;
const LOOP: usize = 2 << 10;
const BRACKET: usize = 4 << 10;
const LINK: usize = 1 << 10;
/// For what was not measured.
const MARGIN: usize = 2;
const MAX_LINKS: usize = 500;
/// What was parsed is dropped on an ordinary thread.
const MAX_DEEPEST: usize = 1000 * LINK;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            assert!(check(&text(200)).is_ok(), "{repeated:?}");
            assert!(check(&text(600)).is_err(), "{repeated:?}");
        }
        let list = format!("x := [{}]", "{\"a\": 1 + 2, \"b\": a.b}, ".repeat(10_000));
        assert_eq!(check(&list), Ok(()));
        let lines = format!("x if {{\n{}}}", "\tinput.a == 1\n".repeat(10_000));
        assert_eq!(check(&lines), Ok(()));
    }

    #[test]
    fn loops_of_a_rule_are_inside_each_other() {
        for repeated in ["\tsome x in [1]\n", "\ta[i]\n", "\ta.b[i]; "] {
            let text = |n: usize| format!("x if {{\n{}}}", repeated.repeat(n));
            assert_eq!(check(&text(1_000)), Ok(()), "{repeated:?}");
            assert!(check(&text(50_000)).is_err(), "{repeated:?}");
        }
    }

    #[test]
    fn all_statements_together_are_bounded() {
        assert_eq!(check(&"x if y\n".repeat(1_000)), Ok(()));
        assert!(check(&"x if y\n".repeat(100_000)).is_err());
        let deep =
            format!("x := {}1{}", "[1 + ".repeat(10), "]".repeat(10).replace(']', &format!("{}]", " + 1".repeat(300))));
        assert!(check(&deep).is_err());
        let long = format!("x := {}1\n", "1 + ".repeat(400));
        assert_eq!(check(&long.repeat(10)), Ok(()));
        assert!(check(&long.repeat(1_000)).is_err());
    }

    #[test]
    fn paths_that_could_lead_anywhere_are_refused_with_their_line() {
        for text in [
            "x if f(1) with g as h",
            "x := data",
            "x := data[input.name]",
            "x := data.agent_policy",
            "x := data.agent_policy[input.name]",
            "x := data[\"agent_policy\"].x",
            "import data.agent_policy.f as g",
            "import data.agent_policy as p",
            "x := data.",
        ] {
            let refusal = check(&format!("\n{text}")).unwrap_err();
            assert!(refusal.starts_with("line 2: ") || refusal.contains("ends inside"), "{text}: {refusal}");
        }
        for text in [
            "x := data.pstate[input.name]",
            "x := data.agent_policy.y[input.name]",
            "x := input.data[0].with",
            "x := \"data with\" # data with",
            "import rego.v1\nimport input.data as d",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\PC\\n\\\\\"`#.,:+()\\[\\]{}]{0,200}|(data|with|agent_policy|[.\\[\\]\n \"])*") {
            let _ = check(&text);
            names(&text).for_each(drop);
        }
    }
}
