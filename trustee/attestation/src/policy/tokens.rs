//! A policy's text as words, strings, brackets and operators: all that the scan before parsing knows of Rego.

/// A piece of a policy's text. Comments are none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    /// A string with its quotes.
    Text(&'a str),
    Open,
    /// The bracket of an index.
    Index,
    Close,
    Dot,
    /// One character of one.
    Operator,
    Separator,
}

/// Reads a text token by token.
pub(super) struct Tokens<'a> {
    text: &'a str,
    /// Where the next token is looked for, in bytes.
    pub at: usize,
    /// The line of the last token, from 1.
    pub line: usize,
    /// Whether the last token is the first of its line.
    pub begins_line: bool,
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1, begins_line: false }
    }

    /// Moves behind the comment or string that begins here. Only a raw string goes on in the next line, so an
    /// unclosed one hides nothing that follows.
    fn skip_quoted(&mut self, quote: u8) {
        let bytes = self.text.as_bytes();
        self.at += 1;
        while let Some(byte) = bytes.get(self.at) {
            match (quote, byte) {
                (b'#' | b'"', b'\n') => return,
                (b'"', b'"') | (b'`', b'`') => {
                    self.at += 1;
                    return;
                }
                (b'"', b'\\') if bytes.get(self.at + 1).is_some_and(|escaped| *escaped != b'\n') => self.at += 2,
                _ => {
                    self.line += usize::from(*byte == b'\n');
                    self.at += 1;
                }
            }
        }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.begins_line = false;
        let bytes = self.text.as_bytes();
        loop {
            let start = self.at;
            let since = |end: usize| self.text.get(start..end).unwrap_or_default();
            let token = match *bytes.get(start)? {
                b'#' => {
                    self.skip_quoted(b'#');
                    continue;
                }
                quote @ (b'"' | b'`') => {
                    self.skip_quoted(quote);
                    return Some(Token::Text(self.text.get(start..self.at).unwrap_or_default()));
                }
                byte if is_word(byte) => {
                    let end = start + bytes[start..].iter().take_while(|byte| is_word(**byte)).count();
                    let word = Token::Word(since(end));
                    self.at = end;
                    return Some(word);
                }
                b'\n' => {
                    self.line += 1;
                    self.begins_line = true;
                    None
                }
                b'[' if bytes[..start].last().is_some_and(|byte| ends_term(*byte)) => Some(Token::Index),
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

/// Follows the references of a text, to tell which words may name rules and which are members of something else.
#[derive(Default)]
pub(super) struct References<'a> {
    before: Option<Token<'a>>,
    place: Place,
}

/// What the last token was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step<'a> {
    /// A word that may name a rule.
    Name(&'a str),
    /// Anything harmless.
    Other,
    /// `with`, which puts one function in another's place.
    With,
    /// A way to `data` that could lead to any rule.
    Data,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Place {
    #[default]
    Elsewhere,
    Data,
    DataDot,
    DataIndex,
    DataMember,
    Package,
    PackageDot,
}

impl<'a> References<'a> {
    /// Takes the next token.
    pub fn follow(&mut self, token: Token<'a>) -> Step<'a> {
        let before = self.before.replace(token);
        let is_member = before == Some(Token::Dot);
        let (place, step) = match (self.place, token) {
            (Place::Elsewhere, Token::Word("data")) if before == Some(Token::Word("import")) => {
                (Place::Elsewhere, Step::Data)
            }
            (Place::Elsewhere, Token::Word("data")) if !is_member => (Place::Data, Step::Other),
            (Place::Elsewhere, Token::Word("with")) if !is_member => (Place::Elsewhere, Step::With),
            (Place::Elsewhere, Token::Word(word)) if !is_member => (Place::Elsewhere, Step::Name(word)),
            (Place::Elsewhere, _) => (Place::Elsewhere, Step::Other),
            (Place::Data, Token::Dot) => (Place::DataDot, Step::Other),
            (Place::Data, Token::Index) => (Place::DataIndex, Step::Other),
            (Place::DataDot, Token::Word(PACKAGE)) => (Place::Package, Step::Other),
            (Place::DataDot, Token::Word(_)) => (Place::Elsewhere, Step::Other),
            (Place::DataIndex, Token::Text(text)) if names_a_member(text) => (Place::DataMember, Step::Other),
            (Place::DataMember, Token::Close) => (Place::Elsewhere, Step::Other),
            (Place::Package, Token::Dot) => (Place::PackageDot, Step::Other),
            (Place::PackageDot, Token::Word(word)) => (Place::Elsewhere, Step::Name(word)),
            _ => (Place::Elsewhere, Step::Data),
        };
        self.place = place;
        step
    }
}

/// The words of a text that may name rules.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    let mut references = References::default();
    Tokens::new(text).filter_map(move |token| match references.follow(token) {
        Step::Name(name) => Some(name),
        Step::Other | Step::With | Step::Data => None,
    })
}

/// Whether a string is, as it stands, the name of a member of `data` other than the policy's own package.
fn names_a_member(quoted: &str) -> bool {
    let name = quoted.trim_matches(['"', '`']);
    name != PACKAGE && !name.contains('\\')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn ends_term(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b')' | b']' | b'}' | b'"' | b'`')
}

const PACKAGE: &str = "policy";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_words_that_are_no_members() {
        let text = "allow if { data.policy.f(x) } # g(1)\nh := \"i\" + j.k[(l)] + data.m[n] + data[\"o-p\"].q";
        assert_eq!(names(text).collect::<Vec<_>>(), ["allow", "if", "f", "x", "h", "j", "l", "n"]);
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        for (text, line) in [
            ("a\nb c", 2),
            ("`\n\n` c", 3),
            ("\"open\nc", 2),
            ("# ` \nc", 2),
            ("\"\\\"\" c", 1),
            ("\"\\\\\"\nc", 2),
            ("\"\\\nc", 2),
        ] {
            let mut tokens = Tokens::new(text);
            assert!(tokens.by_ref().any(|token| token == Token::Word("c")), "{text:?}");
            assert_eq!(tokens.line, line, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\PC\\n\\\\\"`#.,:+()\\[\\]{}]{0,200}|(data|with|policy|[.\\[\\]\n \"])*") {
            Tokens::new(&text).for_each(drop);
            names(&text).for_each(drop);
        }
    }
}
