//! The node's containerd: its program, its version, and what it would make of a configuration.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use toml::{Table, Value};

use crate::configuration::{
    ANNOTATIONS, CRI, Configuration, Format, Handlers, PROXY, RUNTIME, block_in, without_block,
};
use crate::distribution::{Distribution, Way};
use crate::error::Error;
use crate::journal::{Change, Entry};
use crate::processes::{PRECISION, Process};
use crate::root::{CURRENT, Root};
use crate::state::Edits;
use crate::versions::Versions;

/// An installed containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    program: PathBuf,
    pub(crate) version: String,
    pub(crate) place: &'static Distribution,
}

impl Containerd {
    /// The node's containerd.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], [`Error::NoContainerd`], [`Error::OldContainerd`], [`Error::Containerd`] if it does not say
    /// its version.
    pub(crate) fn find(root: &Root) -> Result<Self, Error> {
        let place = Distribution::of(root)?;
        let mut found: Vec<_> = place.programs.iter().map(|path| root.at(path)).filter(|path| path.exists()).collect();
        // Of several it is the one that runs.
        found.sort_by_key(|path| Process::running(path).is_none());
        let program = found.into_iter().next().ok_or_else(|| Error::NoContainerd(place.programs.join(", ")))?;
        // "containerd github.com/containerd/containerd 1.7.24 <commit>"
        let answer = ask(&program, &["--version"])?;
        let version = answer.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v').to_owned();
        let containerd = Self { program, version, place };
        match containerd.numbers() {
            Some(numbers) if numbers >= OLDEST => Ok(containerd),
            Some(_) => Err(Error::OldContainerd(containerd.version)),
            None => Err(containerd.unclear(format!("{:?} when asked for its version", answer.trim()))),
        }
    }

    /// Whether images can be left to guests: what is appended to a template can't change settings that it has.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::File`].
    pub(crate) fn takes_snapshotter(&self, root: &Root) -> Result<bool, Error> {
        Ok(!matches!(self.read(root)?.0.way, Way::Template(_)))
    }

    /// What has to be written for these handlers. Nothing has been written yet, and containerd has read it.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::Taken`], [`Error::Rehearsal`], [`Error::Containerd`], [`Error::File`].
    pub(crate) fn plan(&self, root: &Root, handlers: &Handlers, edits: &mut Edits) -> Result<Vec<Change>, Error> {
        let (mut configuration, is_there) = self.read(root)?;
        match configuration.way {
            Way::Main => {
                edits.created |= !is_there;
                let before = is_there.then(|| self.dump(root, &configuration, None)).transpose()?;
                let drop_in = configuration.add(handlers, edits)?;
                let after = self.dump(root, &configuration, drop_in.as_deref())?;
                compare(before.as_ref(), &after, &handlers.names())?;

                let imported = match drop_in {
                    Some(text) => Change::file(root, self.place.drop_in, text)?,
                    None => Change::removal(root, self.place.drop_in)?,
                };
                // What imports comes after what is imported.
                Ok(vec![imported, Change::file(root, self.place.main, configuration.text())?])
            }
            Way::DropIn => {
                let before = self.dump(root, &configuration, None)?;
                let drop_in = configuration.drop_in(handlers)?;
                let after = self.dump(root, &configuration, Some(&drop_in))?;
                compare(Some(&before), &after, &handlers.names())?;
                // A template may have had them when the main configuration did not import the folder yet.
                let mut changes = templates_without_block(root, self.place, edits.created)?;
                changes.push(Change::file(root, self.place.drop_in, drop_in)?);
                Ok(changes)
            }
            Way::Template(template) => {
                let block = configuration.block(handlers)?;
                // What is made of the template ends with what the template ends with.
                let made = without_block(&configuration.text());
                let bare = Configuration::parse(self.place, &made, self.format())?;
                let whole = Configuration::parse(self.place, &format!("{}{block}", ended(&made)), self.format())?;
                compare(Some(&self.dump(root, &bare, None)?), &self.dump(root, &whole, None)?, &handlers.names())?;

                let present = Entry::at(&root.at(template))?;
                edits.created |= present.is_none();
                let text = present.as_ref().and_then(Entry::text).map_or_else(|| BASE.to_owned(), without_block);
                Ok(vec![Change::file(root, template, format!("{}{block}", ended(&text)))?])
            }
        }
    }

    /// Whether it runs with a configuration that is older than the files.
    pub(crate) fn is_outdated(&self, root: &Root) -> bool {
        let main = (!self.place.writes_main()).then_some(self.place.main);
        let files = self.place.templates().chain([self.place.drop_in]).chain(main);
        let changed = files.filter_map(|path| fs::metadata(root.at(path)).and_then(|file| file.modified()).ok()).max();
        let started = self.process().and_then(|process| process.started());
        changed.zip(started).is_some_and(|(changed, started)| started + PRECISION < changed)
    }

    /// Its process, if it runs.
    pub(crate) fn process(&self) -> Option<Process> {
        Process::running(&self.program)
    }

    fn format(&self) -> Format {
        match self.numbers() {
            Some((1, _)) => Format::V2,
            _ => Format::V3,
        }
    }

    fn numbers(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// The main configuration, and whether there is one.
    fn read(&self, root: &Root) -> Result<(Configuration, bool), Error> {
        let present = main(root, self.place)?;
        if present.is_none() && self.place.writes_main() {
            let (path, reason) = (self.place.main.into(), format!("{} has not written it yet", self.place.name));
            return Err(Error::Configuration { path, reason, next: "start it once, then install again" });
        }
        let configuration = Configuration::parse(self.place, present.as_deref().unwrap_or_default(), self.format())?;
        Ok((configuration, present.is_some()))
    }

    /// What containerd has once it has read a configuration, with one more file imported.
    fn dump(&self, root: &Root, configuration: &Configuration, drop_in: Option<&str>) -> Result<Table, Error> {
        let folder = Versions(root).draft()?;
        let (main, imported) = (folder.join("config.toml"), folder.join("drop-in.toml"));
        // From where it is now, it has to look for its imports where they will be.
        let home = Path::new(self.place.main).with_file_name("");
        let imports = configuration.imports().into_iter();
        let mut imports: Vec<PathBuf> = imports.map(|import| root.at(home.join(import))).collect();
        if let Some(text) = drop_in {
            // In version 2 containerd would replace whole tables, so who has such drop-ins merges them beforehand.
            let base = imports.iter().position(|import| configuration.format == Format::V2 && has_cri(import));
            let text = match base {
                Some(at) => merged(&imports.remove(at), text).map_err(|reason| self.unclear(reason))?,
                None => text.to_owned(),
            };
            fs::write(&imported, text).map_err(Error::file("rehearsal", &imported))?;
            imports.push(imported);
        }
        let imports = imports.into_iter().map(|import| import.to_string_lossy().into_owned());
        fs::write(&main, configuration.importing(imports)).map_err(Error::file("rehearsal", &main))?;
        let dump = ask(&self.program, &["--config", &main.to_string_lossy(), "config", "dump"]);
        Versions(root).remove_draft()?;
        dump?.parse().map_err(|error: toml::de::Error| self.unclear(error.message().to_owned()))
    }

    fn unclear(&self, reason: String) -> Error {
        Error::Containerd { program: self.program.clone(), reason }
    }
}

/// What has to be written so that containerd knows none of our handlers any more.
///
/// # Errors
/// [`Error::Configuration`], [`Error::File`].
pub(crate) fn removal(root: &Root, place: &'static Distribution, edits: Edits) -> Result<Vec<Change>, Error> {
    let mut changes = templates_without_block(root, place, edits.created)?;
    let text = main(root, place)?.filter(|_| place.templates().next().is_none());
    if let Some(mut configuration) = text.map(|text| Configuration::parse(place, &text, Format::V3)).transpose()?
        && configuration.way == Way::Main
    {
        match configuration.remove(edits) {
            Some(text) => changes.push(Change::file(root, place.main, text)?),
            None => changes.push(Change::removal(root, place.main)?),
        }
    }
    changes.push(Change::removal(root, place.drop_in)?);
    Ok(changes)
}

/// The handlers of ours that the files would have containerd know, without asking it.
///
/// # Errors
/// [`Error::Ambiguous`], [`Error::Configuration`], [`Error::File`].
pub(crate) fn handlers(root: &Root) -> Result<Vec<String>, Error> {
    let place = Distribution::of(root)?;
    // One that is made at each start has the handlers of its last start.
    let main = main(root, place)?.filter(|_| !place.writes_main());
    let mut names = Vec::new();
    let mut add = |text: &str| {
        let Ok(table) = text.parse::<Table>() else { return };
        let runtimes = runtimes(&table).into_iter().filter(|(_, path)| Path::new(path).starts_with(CURRENT));
        names.extend(runtimes.map(|(name, _)| name));
    };
    main.iter().for_each(|text| add(text));
    for path in place.templates().chain([place.drop_in]) {
        if let Some(text) = Entry::at(&root.at(path))?.as_ref().and_then(Entry::text) {
            add(block_in(text).unwrap_or(text));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The main configuration, if there is one.
fn main(root: &Root, place: &Distribution) -> Result<Option<String>, Error> {
    let Some(entry) = Entry::at(&root.at(place.main))? else { return Ok(None) };
    entry.text().map(|text| Some(text.to_owned())).ok_or_else(|| Error::Configuration {
        path: place.main.into(),
        reason: "it is a link, and whoever made it would find it replaced".to_owned(),
        next: "put a file there",
    })
}

/// Takes handlers out of templates; one that was made for them goes.
fn templates_without_block(root: &Root, place: &Distribution, created: bool) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for path in place.templates() {
        let entry = Entry::at(&root.at(path))?;
        let Some(text) = entry.as_ref().and_then(Entry::text).filter(|text| block_in(text).is_some()) else { continue };
        let rest = without_block(text);
        changes.push(match created && rest == BASE {
            true => Change::removal(root, path)?,
            false => Change::file(root, path, rest)?,
        });
    }
    Ok(changes)
}

/// A text that ends with a line's end.
fn ended(text: &str) -> String {
    match text.is_empty() || text.ends_with('\n') {
        true => text.to_owned(),
        false => format!("{text}\n"),
    }
}

fn has_cri(file: &Path) -> bool {
    let table = fs::read_to_string(file).ok().and_then(|text| text.parse::<Table>().ok());
    table.is_some_and(|table| table.get("plugins").is_some_and(|plugins| plugins.get(CRI).is_some()))
}

/// A file with another text laid over it.
fn merged(file: &Path, text: &str) -> Result<String, String> {
    let read = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let parse = |text: &str| text.parse::<Table>().map_err(|error| error.message().to_owned());
    let mut table = parse(&read)?;
    lay_over(&mut table, parse(text)?);
    Ok(table.to_string())
}

fn lay_over(table: &mut Table, other: Table) {
    for (key, value) in other {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(table)), Value::Table(other)) => lay_over(table, other),
            (_, value) => _ = table.insert(key, value),
        }
    }
}

/// Names of handlers and paths of their programs.
fn runtimes(table: &Table) -> Vec<(String, String)> {
    let of = |plugin: &str| table.get("plugins")?.get(plugin)?.get("containerd")?.get("runtimes")?.as_table().cloned();
    let tables = [CRI, RUNTIME].into_iter().filter_map(of).flatten();
    let path = |table: &Value| table.get("runtime_path").and_then(Value::as_str).unwrap_or_default().to_owned();
    tables.map(|(name, table)| (name, path(&table))).collect()
}

/// Refuses what would change anything of somebody else's, and what would not have our handlers.
fn compare(before: Option<&Table>, after: &Table, handlers: &[String]) -> Result<(), Error> {
    let known = before.map(runtimes).unwrap_or_default();
    if let Some((handler, owner)) =
        known.into_iter().find(|(name, path)| handlers.contains(name) && !Path::new(path).starts_with(CURRENT))
    {
        return Err(Error::Taken { handler, owner });
    }
    let found = runtimes(after);
    if let Some(missing) = handlers.iter().find(|name| !found.iter().any(|(found, _)| found == *name)) {
        return Err(Error::Rehearsal(format!("no handler {missing}")));
    }
    let Some(before) = before else { return Ok(()) };
    match difference(before, after, handlers) {
        Some(path) => Err(Error::Rehearsal(format!("another value for {path}"))),
        None => Ok(()),
    }
}

/// Where two tables differ in what is not ours.
fn difference(before: &Table, after: &Table, handlers: &[String]) -> Option<String> {
    let empty = Table::new();
    let ours = |key: &str| {
        key == "imports" || key == ANNOTATIONS || key == PROXY || handlers.iter().any(|name| name == key) || is_old(key)
    };
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    keys.filter(|key| !ours(key)).find_map(|key| {
        let path = match (before.get(key), after.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(after))) => difference(before, after, handlers)?,
            (Some(Value::Table(before)), None) => difference(before, &empty, handlers)?,
            (None, Some(Value::Table(after))) => difference(&empty, after, handlers)?,
            (before, after) if before == after => return None,
            _ => String::new(),
        };
        Some(if path.is_empty() { key.clone() } else { format!("{key}.{path}") })
    })
}

/// Whether it is the handler of a class that another version has.
fn is_old(key: &str) -> bool {
    crate::class::CLASSES.iter().any(|class| class.handler() == key)
}

fn ask(program: &Path, arguments: &[&str]) -> Result<String, Error> {
    let refused = |reason: String| Error::Containerd { program: program.to_owned(), reason };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null());
    let output = command.output().map_err(|error: io::Error| refused(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The template that is as good as none.
const BASE: &str = "{{ template \"base\" . }}\n";
const OLDEST: (u32, u32) = (1, 7);

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_somebody_else_s_must_stay_as_it_is() {
        let before = table("version = 2\nimports = [\"a\"]\n[plugins.p]\nkey = 1\n[plugins.p.inner]\nx = true\n");
        for (after, different) in [
            (
                "version = 2\n[plugins.p]\nkey = 1\ndisable_snapshot_annotations = false\n[plugins.p.inner]\nx = true\n",
                None,
            ),
            ("version = 2\n[plugins.p]\nkey = 1\n[plugins.p.inner]\nx = true\n[plugins.q.kata-x]\ny = 1\n", None),
            ("version = 2\n[plugins.p]\nkey = 2\n[plugins.p.inner]\nx = true\n", Some("plugins.p.key")),
            ("version = 2\n[plugins.p]\nkey = 1\n", Some("plugins.p.inner.x")),
            ("version = 2\n[plugins.p]\nkey = 1\n[plugins.p.inner]\nx = true\nz = 1\n", Some("plugins.p.inner.z")),
        ] {
            let found = difference(&before, &table(after), &["kata-x".to_owned()]);
            assert_eq!(found.as_deref(), different, "{after}");
        }
    }
}
