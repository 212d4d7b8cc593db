//! Text that others chose, fit for an error message.

/// The first 80 characters, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}
