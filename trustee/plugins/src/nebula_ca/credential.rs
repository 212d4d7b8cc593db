//! What a guest asks a certificate for. Everything here ends up on a command line, so nothing unusual passes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;

use super::NAME;
use crate::Error;

/// A checked query.
#[derive(Debug, PartialEq)]
pub(super) struct Credential {
    name: String,
    ip: String,
    duration: Option<String>,
    groups: Option<String>,
    subnets: Option<String>,
}

impl Credential {
    /// Reads the members of a query. Others than the five are ignored, as upstream does.
    pub fn parse(query: &BTreeMap<String, String>) -> Result<Self, Error> {
        let optional = |member: &'static str, good: fn(&str) -> bool, form: &str| match query.get(member) {
            Some(value) if value.len() <= MAX_MEMBER && good(value) => Ok(Some(value.clone())),
            Some(_) => Err(refused(member, format!("is not {form}"))),
            None => Ok(None),
        };
        let required = |member, good, form: &str| {
            optional(member, good, form)?.ok_or_else(|| refused(member, format!("is missing: give {form}")))
        };
        Ok(Self {
            name: required("name", is_name, "a name of letters, digits, - _ .")?,
            ip: required("ip", is_network, "an address and network such as 10.1.2.3/16")?,
            duration: optional("duration", is_duration, "a duration such as 8h30m")?,
            groups: optional("groups", |groups| is_list(groups, is_name), "names separated by commas")?,
            subnets: optional("subnets", |subnets| is_list(subnets, is_network), "networks separated by commas")?,
        })
    }

    /// The flags of `nebula-cert sign`, each with its value, so that no value is taken for a flag.
    pub fn flags(&self) -> Vec<OsString> {
        let members = [
            ("name", Some(&self.name)),
            ("ip", Some(&self.ip)),
            ("duration", self.duration.as_ref()),
            ("groups", self.groups.as_ref()),
            ("subnets", self.subnets.as_ref()),
        ];
        let given = members.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.map(|(name, value)| format!("-{name}={value}").into()).collect()
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.len() <= MAX_NAME
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_network(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let longest = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.bytes().all(|b| b.is_ascii_digit()) && length.parse::<u8>().is_ok_and(|length| length <= longest)
}

/// Numbers, each with its unit: hours, minutes, seconds.
fn is_duration(text: &str) -> bool {
    let part = |part: &str| (1..=9).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    match text.strip_suffix(['h', 'm', 's']) {
        Some(rest) => rest.split(['h', 'm', 's']).all(part),
        None => false,
    }
}

fn is_list(text: &str, good: fn(&str) -> bool) -> bool {
    text.split(',').count() <= MAX_LIST && text.split(',').all(good)
}

fn refused(member: &'static str, reason: String) -> Error {
    Error::Member { plugin: NAME, member, reason }
}

const MAX_NAME: usize = 253;
const MAX_LIST: usize = 64;
const MAX_MEMBER: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_query_becomes_flags() {
        let credential = Credential::parse(&query(&[
            ("name", "pod-1.default"),
            ("ip", "10.1.2.3/16"),
            ("duration", "1h30m"),
            ("groups", "web,db"),
            ("subnets", "192.168.0.0/24,fd00::/8"),
            ("other", "-x"),
        ]));
        let flags = [
            "-name=pod-1.default",
            "-ip=10.1.2.3/16",
            "-duration=1h30m",
            "-groups=web,db",
            "-subnets=192.168.0.0/24,fd00::/8",
        ];
        assert_eq!(credential.unwrap().flags(), flags.map(OsString::from));
        let shortest = Credential::parse(&query(&[("name", "a"), ("ip", "fd00::1/64")])).unwrap();
        assert_eq!(shortest.flags(), ["-name=a", "-ip=fd00::1/64"].map(OsString::from));
    }

    #[test]
    fn a_member_that_is_missing_or_unusual_is_named() {
        let good = [("name", "a"), ("ip", "10.0.0.1/8")];
        let long = "a".repeat(254);
        let many = ["a"; 65].join(",");
        for (member, bad) in [
            ("name", ""),
            ("name", "-out-key"),
            ("name", "a b"),
            ("name", "../a"),
            ("name", "a\0"),
            ("name", "ä"),
            ("name", &long),
            ("ip", "10.0.0.1"),
            ("ip", "10.0.0.1/"),
            ("ip", "10.0.0.1/33"),
            ("ip", "10.0.0.1/+8"),
            ("ip", "10.0.0/8"),
            ("ip", "10.0.0.1/8,10.0.0.2/8"),
            ("duration", ""),
            ("duration", "1"),
            ("duration", "h"),
            ("duration", "-1h"),
            ("duration", "1d"),
            ("duration", "1000000000h"),
            ("groups", "a,,b"),
            ("groups", &many),
            ("subnets", "10.0.0.0"),
        ] {
            let mut members = query(&good);
            members.insert(member.to_owned(), bad.to_owned());
            let error = Credential::parse(&members).unwrap_err();
            assert!(matches!(error, Error::Member { member: named, .. } if named == member), "{member}={bad}: {error}");
        }
        for (missing, _) in good {
            let mut members = query(&good);
            members.remove(missing);
            let error = Credential::parse(&members).unwrap_err();
            assert!(error.to_string().contains(&format!("{missing} is missing")), "{error}");
        }
    }

    fn query(members: &[(&str, &str)]) -> BTreeMap<String, String> {
        members.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in prop::collection::btree_map("name|ip|duration|groups|subnets", ".{0,60}", 0..6)) {
            if let Ok(credential) = Credential::parse(&query) {
                let flags = credential.flags();
                prop_assert!(flags.iter().all(|flag| flag.to_str().unwrap().bytes().all(|b| b.is_ascii_graphic())));
            }
        }
    }
}
