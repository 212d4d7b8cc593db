//! How deep a policy would take parser and interpreter, found before they run: neither bounds its own stack, and a
//! stack that ends takes the process with it.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Module, Rule, RuleHead};

/// The deepest nesting of `( [ {` outside of strings and comments.
pub(super) fn depth_of_brackets(text: &str) -> usize {
    let (mut depth, mut deepest, mut at) = (0_usize, 0, 0);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'#' | b'`' | b'"' => at = end_of_quote(bytes, at),
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    deepest
}

/// The most operators and references in one expression, each of which the parser nests into the next. A comma, a
/// brace or a line that begins in the first column ends an expression.
pub(super) fn longest_expression(text: &str) -> usize {
    let (mut links, mut most, mut at) = (0_usize, 0, 0);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'#' | b'`' | b'"' => at = end_of_quote(bytes, at),
            b'+' | b'-' | b'*' | b'/' | b'%' | b'|' | b'&' | b'.' | b'[' => {
                links += 1;
                most = most.max(links);
            }
            b',' | b';' | b'{' => links = 0,
            b'\n' if bytes.get(at + 1).is_some_and(|next| !next.is_ascii_whitespace()) => links = 0,
            _ => {}
        }
        at += 1;
    }
    most
}

/// Which rules and functions a module's rules lead to, by name alone: what a rule's text names, it may evaluate.
pub(super) struct Dependencies<'a> {
    /// By rule and function: the first component of its name.
    named: Graph<'a>,
    /// By function: the last component of its name.
    called: Graph<'a>,
}

type Graph<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

impl<'a> Dependencies<'a> {
    pub fn of(module: &'a Module) -> Self {
        let text = module.package.span.source.get_contents().as_str();
        let mut rules: Vec<_> = module.policy.iter().collect();
        rules.sort_by_key(|rule| rule.span().start);
        let ends = rules.iter().skip(1).map(|rule| rule.span().start as usize).chain([text.len()]);

        let (mut named, mut called) = (Graph::new(), Graph::new());
        for (rule, end) in rules.iter().zip(ends) {
            let body = text.get(rule.span().start as usize..end).unwrap_or_default();
            let (name, is_function) = head(rule);
            let words = words(body);
            if let Some(first) = name.split(|c| !is_word(c)).next() {
                named.entry(first).or_default().extend(words.iter().map(|word| word.text));
            }
            if is_function && let Some(last) = name.trim_end().rsplit(|c| !is_word(c)).next() {
                // The first call in a function's text is its own head.
                let calls = words.iter().filter(|word| word.is_call).skip(1);
                called.entry(last).or_default().extend(calls.map(|word| word.text));
            }
        }
        Self { named, called }
    }

    /// Whether a rule or function leads to more than `limit` others: no chain of them is longer than that.
    pub fn exceed(&self, limit: usize) -> bool {
        self.named.keys().any(|name| reached(&self.named, name, limit).len() > limit)
    }

    /// A function that may call itself, directly or through at most `limit` others. Rules that depend on themselves
    /// are noticed by the interpreter; functions are not.
    pub fn recursive_function(&self, limit: usize) -> Option<&'a str> {
        self.called.keys().copied().find(|name| reached(&self.called, name, limit).contains(name))
    }
}

/// Where the comment, raw string or string that begins at `start` ends. An unclosed string ends with its line, so
/// that what follows is counted and not hidden.
fn end_of_quote(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match (bytes[start], byte) {
            (b'#' | b'"', b'\n') | (b'`', b'`') | (b'"', b'"') => return at,
            (b'"', b'\\') => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A rule's name as it is written, and whether it is a function.
fn head(rule: &Rule) -> (&str, bool) {
    match rule {
        Rule::Spec { head: RuleHead::Func { refr, .. }, .. } => (refr.span().text(), true),
        Rule::Spec { head: RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. }, .. } => {
            (refr.span().text(), false)
        }
        Rule::Default { refr, .. } => (refr.span().text(), false),
    }
}

/// The nodes of the graph that following its edges from `start` leads to; the search ends beyond `limit` of them.
fn reached<'a>(graph: &Graph<'a>, start: &'a str, limit: usize) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut pending = vec![start];
    while let Some(name) = pending.pop() {
        for next in graph.get(name).into_iter().flatten().filter(|next| graph.contains_key(**next)) {
            if reached.len() > limit {
                return reached;
            }
            if reached.insert(*next) {
                pending.push(next);
            }
        }
    }
    reached
}

struct Word<'a> {
    text: &'a str,
    is_call: bool,
}

/// The words outside of strings and comments; one before `(` is a call.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut words: Vec<Word<'_>> = Vec::new();
    let (bytes, mut at) = (text.as_bytes(), 0);
    // Whether only blanks came since the last word.
    let mut adjacent = false;
    while let Some(byte) = bytes.get(at) {
        let start = at;
        match byte {
            b'#' | b'`' | b'"' => at = end_of_quote(bytes, at) + 1,
            byte if is_word(char::from(*byte)) => {
                at += bytes[at..].iter().take_while(|b| is_word(char::from(**b))).count();
                words.extend(text.get(start..at).map(|text| Word { text, is_call: false }));
                adjacent = true;
                continue;
            }
            b'(' if adjacent => {
                words.iter_mut().rev().take(1).for_each(|word| word.is_call = true);
                at += 1;
            }
            _ => at += 1,
        }
        adjacent = adjacent && byte.is_ascii_whitespace();
    }
    words
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        assert_eq!(depth_of_brackets("# ((((\nx := \"[[\\\"[[\" + `{{{` + f([1])"), 2);
        assert_eq!(depth_of_brackets("x := \"\n[[["), 3);
        assert_eq!(depth_of_brackets("]]]((("), 3);
    }

    #[test]
    fn words_before_a_parenthesis_are_calls() {
        let text = "allow if { data.policy.f (x) } # g(1)\nh := \"i(2)\" + j(k[(1)])";
        let calls: Vec<_> = words(text).into_iter().filter(|word| word.is_call).map(|word| word.text).collect();
        assert_eq!(calls, ["f", "j"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_scans_panic(text in "[\\[\\](){}\"`#\\\\\naü ]{0,60}") {
            let _ = depth_of_brackets(&text);
            let _ = longest_expression(&text);
            let _ = words(&text);
        }
    }
}
