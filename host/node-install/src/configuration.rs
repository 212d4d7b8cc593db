//! containerd's configuration with our handlers in it, and all else as its owner wrote it.
//!
//! In version 3 the handlers are a file of their own, which the main configuration imports. containerd 1.7 replaces a
//! plugin's whole table by an imported one, runc's options with it, so in version 2 the handlers are tables among the others.
//! Version 4, of containerd 2.3, differs from version 3 in what has nothing to do with handlers.

use std::path::Path;

use toml_edit::{Array, DocumentMut, Item, Table, Value};

use crate::class::Class;
use crate::distribution::{Distribution, Way};
use crate::error::Error;
use crate::root::{CURRENT, SNAPSHOTTER};
use crate::state::{Annotations, Edits};

/// How a configuration is laid out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    /// Version 2: of containerd 1.7; 2.x reads it as well.
    V2,
    /// Versions 3 and 4: of containerd 2.x.
    V3,
}

/// containerd's main configuration.
pub(crate) struct Configuration {
    pub(crate) format: Format,
    pub(crate) way: Way,
    version: i64,
    document: DocumentMut,
    place: &'static Distribution,
}

impl Configuration {
    /// Reads the main configuration of a distribution; `format` is for one that says nothing at all.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it can't be parsed, has another version, or switches CRI off.
    pub(crate) fn parse(place: &'static Distribution, text: &str, format: Format) -> Result<Self, Error> {
        let refused = |reason: &str, next| refused(place, reason, next);
        let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
            refused(error.to_string().trim_end(), "correct it; \"containerd config dump\" shows where")
        })?;
        if document.is_empty() {
            document.insert("version", toml_edit::value(format.version()));
        }
        let migrate =
            "have containerd write it anew with \"containerd config default\" or \"containerd config migrate\"";
        let (version, format) = match document.get("version").map(Item::as_integer) {
            Some(Some(2)) => (2, Format::V2),
            Some(Some(version @ (3 | 4))) => (version, Format::V3),
            Some(version) => {
                let found = version.map_or("no number".to_owned(), |version| version.to_string());
                return Err(refused(&format!("its version is {found}, and 2 to 4 are known"), migrate));
            }
            None => return Err(refused("it has no version, so it is of version 1; 2 to 4 are known", migrate)),
        };
        let disabled = document.get("disabled_plugins").and_then(Item::as_array).into_iter().flatten();
        if let Some(name) = disabled.filter_map(Value::as_str).find(|name| CRI_NAMES.contains(name)) {
            let reason = format!("disabled_plugins has {name:?}, without which Kubernetes can't run pods");
            return Err(refused(&reason, "remove that name from disabled_plugins"));
        }
        let way = place.way(version, text, &imports(&document));
        Ok(Self { format, way, version, document, place })
    }

    /// Makes containerd know these handlers and no others of ours. Gives the content of the file to import, if there is one.
    ///
    /// # Errors
    /// [`Error::Configuration`] if a table that has to be added to is not written as one.
    pub(crate) fn add(&mut self, handlers: &Handlers, edits: &mut Edits) -> Result<Option<String>, Error> {
        match self.format {
            Format::V2 => {
                self.remove_tables(Some(handlers));
                if handlers.snapshotter {
                    self.enable_annotations(edits)?;
                }
                apply(self.place, &mut self.document, &handlers.settings(self.format))?;
                Ok(None)
            }
            Format::V3 => {
                // Of a configuration that was migrated.
                self.remove_tables(None);
                self.import(edits)?;
                self.drop_in(handlers).map(Some)
            }
        }
    }

    /// The content of the file to import for these handlers.
    ///
    /// # Errors
    /// None for tables that are made here.
    pub(crate) fn drop_in(&self, handlers: &Handlers) -> Result<String, Error> {
        let mut drop_in = DocumentMut::new();
        drop_in.insert("version", toml_edit::value(self.version));
        let mut settings = handlers.settings(self.format);
        if self.format == Format::V2 && handlers.snapshotter {
            settings.push((owned(&["plugins", CRI, "containerd"]), vec![(ANNOTATIONS, false.into())]));
        }
        apply(self.place, &mut drop_in, &settings)?;
        Ok(format!("# Written by \"cocoon node install\".\n{drop_in}"))
    }

    /// What goes to the end of a template for these handlers.
    ///
    /// # Errors
    /// None for tables that are made here.
    pub(crate) fn block(&self, handlers: &Handlers) -> Result<String, Error> {
        let mut block = DocumentMut::new();
        apply(self.place, &mut block, &handlers.settings(self.format))?;
        Ok(format!("{BEGIN}\n{}\n{END}\n", block.to_string().trim()))
    }

    /// Takes back all that was added. Gives nothing if nothing is left that somebody else has written.
    pub(crate) fn remove(&mut self, edits: Edits) -> Option<String> {
        self.remove_tables(None);
        let path = owned(&["plugins", CRI, "containerd"]);
        if let Some(table) = existing(&mut self.document, &path) {
            match edits.annotations {
                Some(Annotations::Absent) => _ = table.remove(ANNOTATIONS),
                Some(Annotations::WithoutTable) => {
                    table.remove(ANNOTATIONS);
                    // Without keys the heading goes as well.
                    table.set_implicit(true);
                }
                Some(Annotations::Disabled) => put(table, ANNOTATIONS, &true.into()),
                None => {}
            }
        }
        if edits.import {
            let import = self.place.import();
            let imports = self.document.get_mut("imports").and_then(Item::as_array_mut);
            let empty = imports.map(|imports| {
                imports.retain(|found| found.as_str() != Some(&import));
                imports.is_empty()
            });
            if empty == Some(true) {
                self.document.remove("imports");
            }
        }
        let text = self.document.to_string();
        let says_something = text.lines().any(|line| !line.trim().is_empty() && !line.starts_with("version ="));
        (!edits.created || says_something).then_some(text)
    }

    pub(crate) fn text(&self) -> String {
        self.document.to_string()
    }

    /// What it imports.
    pub(crate) fn imports(&self) -> Vec<String> {
        imports(&self.document)
    }

    /// The same, with other imports.
    pub(crate) fn importing(&self, imports: impl IntoIterator<Item = String>) -> String {
        let mut document = self.document.clone();
        document.insert("imports", toml_edit::value(imports.into_iter().collect::<Array>()));
        document.to_string()
    }

    fn import(&mut self, edits: &mut Edits) -> Result<(), Error> {
        if self.imports().iter().any(|import| self.place.is_imported_by(import)) {
            return Ok(());
        }
        let imports = self.document.entry("imports").or_insert_with(|| toml_edit::value(Array::new()));
        let unreadable = || refused(self.place, "imports is not a list of files", "write it as a list");
        imports.as_array_mut().ok_or_else(unreadable)?.push(self.place.import());
        edits.import = true;
        Ok(())
    }

    /// Without them a snapshotter isn't told which image a layer belongs to.
    fn enable_annotations(&mut self, edits: &mut Edits) -> Result<(), Error> {
        let table = table(self.place, &mut self.document, &owned(&["plugins", CRI, "containerd"]))?;
        let was = match table.get(ANNOTATIONS).and_then(Item::as_bool) {
            Some(false) => return Ok(()),
            Some(true) => Annotations::Disabled,
            None if table.is_implicit() => Annotations::WithoutTable,
            None => Annotations::Absent,
        };
        edits.annotations = Some(was);
        put(table, ANNOTATIONS, &false.into());
        Ok(())
    }

    /// Removes our handlers but for these, and what belongs to them.
    fn remove_tables(&mut self, keep: Option<&Handlers>) {
        let names = keep.map(Handlers::names).unwrap_or_default();
        let snapshotter = keep.is_some_and(|handlers| handlers.snapshotter);
        for plugin in [CRI, RUNTIME] {
            let path = owned(&["plugins", plugin, "containerd", "runtimes"]);
            let ours = |table: &Table| {
                table
                    .get("runtime_path")
                    .and_then(Item::as_str)
                    .is_some_and(|path| Path::new(path).starts_with(CURRENT))
            };
            remove_from(&mut self.document, &path, &names, ours);
        }
        let ours = |table: &Table| table.get("snapshotter").and_then(Item::as_str) == Some(PROXY);
        let kept = if snapshotter { &names[..] } else { &[] };
        remove_from(&mut self.document, &owned(&["plugins", IMAGES, "runtime_platforms"]), kept, ours);
        if !snapshotter {
            remove_from(&mut self.document, &owned(&["proxy_plugins"]), &[], |table| {
                table.get("address").and_then(Item::as_str) == Some(SNAPSHOTTER)
            });
        }
    }
}

/// The handlers that a node is to have.
#[derive(Clone, Debug)]
pub(crate) struct Handlers {
    pub(crate) classes: Vec<&'static Class>,
    /// Whether images are left to guests by the snapshotter, which somebody has to keep running.
    pub(crate) snapshotter: bool,
}

/// Keys and values of one table.
type Setting = (Vec<String>, Vec<(&'static str, Value)>);

impl Handlers {
    pub(crate) fn names(&self) -> Vec<String> {
        self.classes.iter().map(|class| class.handler()).collect()
    }

    fn settings(&self, format: Format) -> Vec<Setting> {
        let runtime = match format {
            Format::V2 => CRI,
            Format::V3 => RUNTIME,
        };
        let mut settings: Vec<Setting> = Vec::new();
        if self.snapshotter {
            let proxy = vec![("type", "snapshot".into()), ("address", SNAPSHOTTER.into())];
            settings.push((owned(&["proxy_plugins", PROXY]), proxy));
            let exports = vec![("enable_remote_snapshot_annotations", "true".into())];
            settings.push((owned(&["proxy_plugins", PROXY, "exports"]), exports));
            if format == Format::V3 {
                settings.push((owned(&["plugins", IMAGES]), vec![(ANNOTATIONS, false.into())]));
            }
        }
        for class in &self.classes {
            let handler = class.handler();
            let mut keys = vec![
                ("runtime_type", "io.containerd.cocoon.v2".into()),
                ("runtime_path", format!("{CURRENT}/bin/containerd-shim-cocoon-v2").into()),
                ("privileged_without_host_devices", true.into()),
                ("pod_annotations", ["io.katacontainers.*"].into_iter().collect::<Array>().into()),
                (
                    "container_annotations",
                    ["io.kubernetes.container.terminationMessage*"].into_iter().collect::<Array>().into(),
                ),
            ];
            if self.snapshotter {
                keys.push(("snapshotter", PROXY.into()));
                // containerd 2.x asks here which snapshotter an image is pulled for; 1.7 doesn't look.
                let platform = vec![("platform", platform().into()), ("snapshotter", PROXY.into())];
                settings.push((owned(&["plugins", IMAGES, "runtime_platforms", &handler]), platform));
            }
            let path = owned(&["plugins", runtime, "containerd", "runtimes", &handler]);
            let file = format!("{CURRENT}/share/classes/{}/configuration.toml", class.name);
            settings.push((path.clone(), keys));
            settings.push(([path, owned(&["options"])].concat(), vec![("ConfigPath", file.into())]));
        }
        settings
    }
}

impl Format {
    fn version(self) -> i64 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

fn apply(place: &'static Distribution, document: &mut DocumentMut, settings: &[Setting]) -> Result<(), Error> {
    for (path, keys) in settings {
        let table = table(place, document, path)?;
        // What an earlier version wrote and this one doesn't.
        table.retain(|name, item| item.is_table() || keys.iter().any(|(key, _)| *key == name));
        for (key, value) in keys {
            put(table, key, value);
        }
    }
    Ok(())
}

/// Sets a key, and touches nothing if it has that value.
fn put(table: &mut Table, key: &str, value: &Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) if old.clone().decorated("", "").to_string() == value.clone().decorated("", "").to_string() => {}
        Some(old) => {
            let decor = old.decor().clone();
            *old = value.clone();
            *old.decor_mut() = decor;
        }
        None => _ = table.insert(key, Item::Value(value.clone())),
    }
}

/// The table at a path, made where it is missing. One without keys of its own is not written.
fn table<'d>(
    place: &'static Distribution,
    document: &'d mut DocumentMut,
    path: &[String],
) -> Result<&'d mut Table, Error> {
    let mut table = document.as_table_mut();
    for (depth, name) in path.iter().enumerate() {
        let item = table.entry(name).or_insert_with(|| {
            let mut made = Table::new();
            made.set_implicit(true);
            Item::Table(made)
        });
        table = item.as_table_mut().ok_or_else(|| {
            let reason = format!("{} is not a table with a heading of its own", path[..=depth].join("."));
            refused(place, &reason, "write it as one, as \"containerd config default\" does")
        })?;
    }
    Ok(table)
}

fn existing<'d>(document: &'d mut DocumentMut, path: &[String]) -> Option<&'d mut Table> {
    path.iter().try_fold(document.as_table_mut(), |table, name| table.get_mut(name)?.as_table_mut())
}

/// Removes of a table's tables those that are ours, but for some.
fn remove_from(document: &mut DocumentMut, path: &[String], keep: &[String], ours: impl Fn(&Table) -> bool) {
    let Some(table) = existing(document, path) else { return };
    let names =
        table.iter().filter(|(name, item)| item.as_table().is_some_and(&ours) && !keep.iter().any(|kept| kept == name));
    let names: Vec<String> = names.map(|(name, _)| name.to_owned()).collect();
    for name in names {
        table.remove(&name);
    }
}

/// What a configuration imports.
fn imports(document: &DocumentMut) -> Vec<String> {
    let imports = document.get("imports").and_then(Item::as_array).into_iter().flatten();
    imports.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A text without what [`Configuration::block`] gave.
pub(crate) fn without_block(text: &str) -> String {
    match (text.find(BEGIN), text.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let after = &text[end + END.len()..];
            format!("{}{}", &text[..begin], after.strip_prefix('\n').unwrap_or(after))
        }
        _ => text.to_owned(),
    }
}

/// That block alone.
pub(crate) fn block_in(text: &str) -> Option<&str> {
    let (begin, end) = (text.find(BEGIN)?, text.find(END)?);
    text.get(begin..end)
}

fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|&name| name.to_owned()).collect()
}

fn refused(place: &'static Distribution, reason: &str, next: &'static str) -> Error {
    Error::Configuration { path: place.main.into(), reason: reason.to_owned(), next }
}

/// Its plugin for CRI, by version 2.
pub(crate) const CRI: &str = "io.containerd.grpc.v1.cri";
/// The part of it that runs pods, by version 3.
pub(crate) const RUNTIME: &str = "io.containerd.cri.v1.runtime";
const IMAGES: &str = "io.containerd.cri.v1.images";
const CRI_NAMES: [&str; 4] = ["cri", CRI, RUNTIME, IMAGES];
/// The snapshotter's name in containerd.
pub(crate) const PROXY: &str = "cocoon";
pub(crate) const ANNOTATIONS: &str = "disable_snapshot_annotations";
const BEGIN: &str = "# Written by \"cocoon node install\", to the line that says so.";
const END: &str = "# The end of what \"cocoon node install\" has written.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::CLASSES;
    use crate::distribution::PLAIN;

    fn handlers() -> Handlers {
        Handlers { classes: CLASSES[..2].iter().collect(), snapshotter: true }
    }

    fn parse(text: &str) -> Configuration {
        Configuration::parse(&PLAIN, text, Format::V3).unwrap()
    }

    #[test]
    fn what_is_added_can_be_removed_to_the_last_byte() {
        for text in [
            "version = 2\n",
            "version = 3\n",
            "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/x'\n",
            "# mine\nversion = 3\nimports = [\n  \"/etc/containerd/more.toml\", # keep\n]\nroot = '/x'\n\n[grpc]\n  uid = 0 # root\n",
            "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
            V2,
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  disable_snapshot_annotations = true # why\n[debug]\nlevel = \"info\"\n",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndisable_snapshot_annotations = false\n",
        ] {
            let (mut configuration, mut edits) = (parse(text), Edits::default());
            configuration.add(&handlers(), &mut edits).unwrap();
            let added = configuration.text();
            assert!(text.contains("conf.d") || added != text, "{text}");

            let mut again = parse(&added);
            again.add(&handlers(), &mut edits).unwrap();
            assert_eq!(again.text(), added, "a second time it changes nothing");

            assert_eq!(parse(&added).remove(edits).unwrap(), text);
        }
    }

    #[test]
    fn a_file_that_was_made_goes_unless_somebody_wrote_into_it() {
        for format in [Format::V2, Format::V3] {
            let mut edits = Edits { created: true, ..Edits::default() };
            let mut configuration = Configuration::parse(&PLAIN, "", format).unwrap();
            configuration.add(&handlers(), &mut edits).unwrap();
            let text = configuration.text();
            assert_eq!(Configuration::parse(&PLAIN, &text, format).unwrap().remove(edits), None, "{text}");
            let mut changed = Configuration::parse(&PLAIN, &format!("root = \"/x\"\n{text}"), format).unwrap();
            assert!(changed.remove(edits).unwrap().contains("root"));
        }
    }

    #[test]
    fn a_class_that_a_version_lacks_goes_and_the_others_stay_as_they_are() {
        let (mut configuration, mut edits) = (parse(V2), Edits::default());
        configuration.add(&handlers(), &mut edits).unwrap();
        let fewer = Handlers { classes: vec![&CLASSES[0]], snapshotter: true };
        configuration.add(&fewer, &mut edits).unwrap();
        let text = configuration.text();
        assert!(text.contains("kata-qemu-coco-dev") && !text.contains("kata-qemu-snp"), "{text}");
        assert!(text.contains("# runc's own"));
    }

    #[test]
    fn what_can_t_be_added_to_is_refused_with_its_reason() {
        for (text, reason) in [
            ("version = [", "TOML"),
            ("root = \"/x\"\n", "version 1"),
            ("version = 5\n", "its version is 5"),
            ("version = \"3\"\n", "no number"),
            ("version = 2\ndisabled_plugins = [\"cri\"]\n", "disabled_plugins"),
            ("version = 3\nimports = \"a\"\n", "imports"),
            ("version = 2\nplugins = { \"io.containerd.grpc.v1.cri\" = { sandbox_image = \"x\" } }\n", "heading"),
        ] {
            let refused = Configuration::parse(&PLAIN, text, Format::V3)
                .and_then(|mut it| it.add(&handlers(), &mut Edits::default()).map(drop));
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("next:"), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_template_has_one_block_whatever_is_around_it() {
        let configuration = parse("version = 3\n");
        let [one, two] = [1, 2].map(|count| {
            let handlers = Handlers { classes: CLASSES[..count].iter().collect(), snapshotter: false };
            configuration.block(&handlers).unwrap()
        });
        for (before, after) in [("{{ template \"base\" . }}\n\n", ""), ("a = 1\n", "[b]\nc = 1\n"), ("", "")] {
            let text = format!("{before}{one}{after}");
            assert_eq!(without_block(&text), format!("{before}{after}"));
            assert!(block_in(&text).unwrap().parse::<DocumentMut>().is_ok());
        }
        assert!(two.contains("kata-qemu-snp") && !one.contains("kata-qemu-snp"));
        assert_eq!((without_block("a = 1"), block_in("a = 1")), ("a = 1".to_owned(), None));
    }

    const V2: &str = "\
version = 2

[plugins]
  [plugins.\"io.containerd.grpc.v1.cri\"]
    sandbox_image = \"registry/pause:1\"
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
      runtime_type = \"io.containerd.runc.v2\" # runc's own
      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
        SystemdCgroup = true
  [plugins.\"io.containerd.internal.v1.opt\"]
    path = \"/var/lib/containerd/opt\"
";
}
