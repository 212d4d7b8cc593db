//! What a client sent, as it may be shown and logged.

/// A name that a client sent, short and escaped.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_default).collect()
}
