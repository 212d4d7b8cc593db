//! Sections of a configuration: types whose keys are strict, whose defaults are written once, and that describe
//! themselves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// One key, as the reference shows it.
pub struct Key {
    pub name: &'static str,
    /// Its doc comment, line by line.
    pub doc: &'static [&'static str],
    /// What holds where it is left out; null if nothing does.
    pub default: Value,
    pub nested: Nested,
}

/// What lies under a key.
pub enum Nested {
    Value,
    Section(Vec<Key>),
    /// Any number of sections.
    List(Vec<Key>),
}

/// A type that can stand for the value of a key.
pub trait Documented {
    fn nested() -> Nested;
}

/// Declares sections. Every key has a default, that of its type where none is written, and one doc comment; a key that
/// can't be left out is an `Option` that the reader of the configuration checks.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $($(#[doc = $doc:literal])+ $(#[serde($($serde:tt)+)])? pub $key:ident: $type:ty $(= $default:expr)?,)*
        }
    )+) => {$(
        $(#[doc = $about])+
        #[derive(Clone, serde::Deserialize, serde::Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $doc])+ $(#[serde($($serde)+)])? pub $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $crate::config::section::sections!(@default $($default)?),)* }
            }
        }

        impl $crate::config::section::Documented for $name {
            fn nested() -> $crate::config::section::Nested {
                let defaults = serde_json::to_value(Self::default()).unwrap_or_default();
                $crate::config::section::Nested::Section(vec![$($crate::config::section::Key {
                    name: stringify!($key).trim_start_matches("r#"),
                    doc: &[$($doc),+],
                    default: defaults[stringify!($key).trim_start_matches("r#")].clone(),
                    nested: <$type as $crate::config::section::Documented>::nested(),
                },)*])
            }
        }
    )+};
    (@default $default:expr) => { $default };
    (@default) => { Default::default() };
}

/// Declares a choice between names. A name in older or other spelling can be an alias.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        pub enum $name:ident {
            $($(#[doc = $doc:literal])+ $(#[$attribute:meta])* $variant:ident,)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
        pub enum $name {
            $($(#[doc = $doc])+ $(#[$attribute])* $variant,)+
        }

        impl $crate::config::section::Documented for $name {
            fn nested() -> $crate::config::section::Nested {
                $crate::config::section::Nested::Value
            }
        }
    };
}

pub(crate) use {choice, sections};

impl<T: Documented> Documented for Option<T> {
    fn nested() -> Nested {
        T::nested()
    }
}

impl<T: Documented> Documented for Vec<T> {
    fn nested() -> Nested {
        match T::nested() {
            Nested::Section(keys) => Nested::List(keys),
            other => other,
        }
    }
}

macro_rules! values {
    ($($type:ty),+) => {$(
        impl Documented for $type {
            fn nested() -> Nested {
                Nested::Value
            }
        }
    )+};
}

values!(
    bool,
    u16,
    u32,
    u64,
    String,
    PathBuf,
    Zeroizing<String>,
    Map<String, Value>,
    BTreeMap<String, String>
);
