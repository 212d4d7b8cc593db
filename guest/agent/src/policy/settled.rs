//! Finds the rules that say the same of every request, so that they have to be evaluated only once.
//!
//! By words alone, as [`depth`] finds recursion: a rule that mentions the request, the state or chance, or a rule that
//! does, may say something else each time. What only seems to mention them is taken to do so.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::Module;

use super::depth;

/// The names of rules that say the same each time.
pub(super) fn rules(module: &Module) -> BTreeSet<String> {
    let text = module.package.span.source.get_contents().as_str();
    let mut before = "";
    for word in depth::words(text) {
        // What is imported is meant by a name that could be any.
        if before == "import" && !LANGUAGE.contains(&word) {
            return BTreeSet::new();
        }
        before = word;
    }

    let mut mentioned: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (head, body) in depth::rules(module) {
        let Some(name) = depth::names(head).next() else { return BTreeSet::new() };
        mentioned.entry(name).or_default().extend(depth::words(body));
    }
    let mut varying: BTreeSet<&str> = VARYING.into();
    loop {
        let found: Vec<&str> = mentioned
            .iter()
            .filter(|(name, words)| !varying.contains(*name) && words.iter().any(|word| varying.contains(word)))
            .map(|(name, _)| *name)
            .collect();
        if found.is_empty() {
            break;
        }
        varying.extend(found);
    }
    mentioned.keys().filter(|name| !varying.contains(*name)).map(|name| (*name).to_owned()).collect()
}

const LANGUAGE: [&str; 2] = ["rego", "future"];
/// The request, the state, and the builtin functions that are none of mathematics.
const VARYING: [&str; 8] = ["input", "data", "with", "rand", "time", "uuid", "opa", "http"];

#[cfg(test)]
mod tests {
    use regorus::Engine;

    fn settled(rules: &str) -> Vec<String> {
        let mut engine = Engine::new();
        engine.add_policy("policy.rego".to_owned(), format!("package agent_policy\n{rules}")).unwrap();
        super::rules(engine.get_modules().first().unwrap()).into_iter().collect()
    }

    #[test]
    fn rules_that_mention_what_varies_are_not_settled_however_far_it_is() {
        let text = "import rego.v1
            a := true
            b if input.x
            c if { some y in [1, 2]; f(y) }
            f(y) if y == values.one
            values := {\"one\": 1}
            d if b
            e if { g(1) }
            g(y) if { d; y }
            h if data.pstate.x
            default i := false
            i if d
            j if rand.intn(\"x\", 2) == 1
            k if \"input\" == \"data\" # input";
        assert_eq!(settled(text), ["a", "c", "f", "k", "values"]);
    }

    #[test]
    fn no_rule_is_settled_where_names_may_stand_for_the_request() {
        assert!(settled("import input.x as y\na if y\nb := true").is_empty());
        assert_eq!(settled("import future.keywords.if\nb := true"), ["b"]);
    }
}
