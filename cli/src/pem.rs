//! PEM blocks (RFC 7468), read and written without leaving copies of private keys behind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The first private key: PKCS#8, or SEC 1, which OpenSSL writes behind a block of parameters.
pub(crate) fn private_key(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    ["PRIVATE KEY", "EC PRIVATE KEY"].into_iter().find_map(|label| block(text, label))
}

/// The first block with this label.
pub(crate) fn block(text: &str, label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    let mut compact = Zeroizing::new(String::with_capacity(body.len()));
    compact.extend(body.split_ascii_whitespace());
    STANDARD.decode(&*compact).ok().map(Zeroizing::new)
}

/// A block with this label.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Room for all of it, so that it never moves.
    let mut text = Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * (label.len() + 20)));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII.
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_among_others() {
        let der: Vec<u8> = (0..200).collect();
        let text = format!("{}noise\n{}", *encode("EC PARAMETERS", b"p"), *encode("EC PRIVATE KEY", &der));

        assert_eq!(*private_key(&text).unwrap(), der);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert!(block(&text, "PUBLIC KEY").is_none());
        assert!(private_key("-----BEGIN PRIVATE KEY-----\nn@t base64\n-----END PRIVATE KEY-----").is_none());
    }
}
