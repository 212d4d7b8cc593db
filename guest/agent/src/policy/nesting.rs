//! Bounds what parsing a policy can cost before it is parsed.
//!
//! The Rego parser tries several readings of each bracket, so that its time doubles or worse with every level of
//! nesting. The scan below knows strings and comments, and nothing else of the language.

/// Checks that parsing `text` stays cheap.
///
/// # Errors
/// A sentence that names the line where nesting is too deep, or that the text is too large for its nesting.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut depth = 0_u32;
    let mut work = 0_u64;
    let mut line = 1;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match (quote, character) {
            // A raw string knows no escapes; a plain one ends at the end of its line at the latest.
            (Some('"'), '\\') => {
                line += usize::from(characters.next() == Some('\n'));
            }
            (Some(open), _) if open == character || (open != '`' && character == '\n') => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`' | '#') => quote = Some(character),
            (None, '(' | '[' | '{') => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("line {line}: brackets are nested more than {MAX_DEPTH} deep"));
                }
            }
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        work += 1 << depth;
        if work > MAX_WORK {
            return Err(format!("line {line}: too much text is nested {depth} deep"));
        }
    }
    Ok(())
}

/// A document of policy data that mirrors a container's OCI specification is nested 9 deep.
const MAX_DEPTH: u32 = 14;
/// Characters, each counted twice for every bracket around it.
const MAX_WORK: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depth_is_counted_outside_of_strings_and_comments() {
        let deep = "[".repeat(15);
        for (text, fine) in [
            (deep.clone(), false),
            ("[".repeat(14), true),
            ("[]".repeat(1000), true),
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
    }

    #[test]
    fn a_refusal_names_the_line() {
        assert!(check(&format!("\n\n{}", "{".repeat(15))).unwrap_err().starts_with("line 3:"));
        assert!(check(&format!("{}{}", "{".repeat(14), " ".repeat(1 << 20))).unwrap_err().contains("14 deep"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\PC\\n\\\\\"`#\\[\\]{}]{0,200}") {
            let _ = check(&text);
        }
    }
}
