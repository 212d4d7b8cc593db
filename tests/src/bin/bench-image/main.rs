//! Measures how images are pulled: wall time, processor time and peak memory, against `skopeo copy` and `umoci unpack`.
//!
//! Images are made here and come from a registry on loopback with TLS; everything is unpacked to memory (tmpfs). Each
//! pull is a process of its own, so that its processor time and its memory are its own.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod content;
mod figures;
mod pull;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Lab, Registry, run};

use content::Shape;
use figures::Figures;

/// Measures how images are pulled.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How often each image is pulled; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure these cases only: six-layers, many-small-files, one-layer, forty-layers.
    #[arg(long = "case")]
    cases: Vec<String>,
    /// Also measure an image of your own: an OCI layout with the tag `latest`.
    #[arg(long)]
    layout: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// One pull of a guest.
    #[command(hide = true)]
    Pull(pull::Arguments),
    /// Run a program and say what it took.
    #[command(hide = true)]
    Measure {
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
}

fn main() {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::Pull(ref pull)) => pull.run(),
        Some(Part::Measure { command }) => figures::report(&command),
        None => println!("{}", serde_json::to_string_pretty(&Bench::new(arguments).run()).unwrap()),
    }
}

struct Bench {
    arguments: Arguments,
    lab: Lab,
    registry: Registry,
    /// On tmpfs, like a guest's work directory.
    memory: TempDir,
    results: BTreeMap<String, Value>,
}

impl Bench {
    fn new(arguments: Arguments) -> Self {
        let lab = Lab::new();
        let registry = lab.registry();
        lab.file("ca.pem", registry.certificate());
        let memory = tempfile::Builder::new().prefix("cocoon-bench-").tempdir_in("/dev/shm").unwrap();
        Self { arguments, lab, registry, memory, results: BTreeMap::new() }
    }

    fn run(mut self) -> Value {
        for (name, shape, variants) in [
            ("six-layers", Shape::MIXED, true),
            ("many-small-files", Shape::SMALL, false),
            ("one-layer", Shape::LARGE, false),
            ("forty-layers", Shape::DEEP, false),
        ] {
            if self.wanted(name) {
                eprintln!("making {name}");
                let layout = shape.layout(self.lab.path(), name);
                self.image(name, &layout, variants);
                fs::remove_dir_all(layout).unwrap();
            }
        }
        if let Some(layout) = self.arguments.layout.clone() {
            self.image("own", &layout, true);
        }
        json!({ "rounds": self.arguments.rounds, "cases": self.results })
    }

    fn wanted(&self, name: &str) -> bool {
        self.arguments.cases.is_empty() || self.arguments.cases.iter().any(|case| case == name)
    }

    /// Measures an image; with `variants` also the same one encrypted, and with zstd instead of gzip.
    fn image(&mut self, name: &str, layout: &Path, variants: bool) {
        // First, or skopeo would find the same layers in the registry and leave them as they are.
        let zstd = variants.then(|| self.registry.push_as_zstd(layout, &format!("{name}-zstd")));
        let image = local(&self.registry.push(layout, name));
        let baseline = self.median("skopeo and umoci", name, |bench| bench.copy_and_unpack(&image));
        self.case(name, &image, None, layout, &baseline);
        // skopeo needs a key provider for the one and umoci can't read the other: both are set against the plain image.
        if let Some(zstd) = zstd {
            self.case(&format!("{name}-zstd"), &local(&zstd), None, layout, &baseline);
            let (encrypted, key) = self.encrypt(layout);
            let name = format!("{name}-encrypted");
            let image = local(&self.registry.push(&encrypted, &name));
            self.case(&name, &image, Some(&key), &encrypted, &baseline);
        }
    }

    fn case(&mut self, name: &str, image: &str, key: Option<&Path>, layout: &Path, baseline: &Figures) {
        let own = self.median("pull", name, |bench| bench.pull(image, key));
        let result = json!({
            "layout_mb": content::size(layout) / 1_000_000,
            "pull": own,
            "skopeo_umoci": baseline,
            "wall_ratio": own.wall / baseline.wall,
            "cpu_ratio": own.cpu / baseline.cpu,
            "peak_ratio": own.peak_mb / baseline.peak_mb,
        });
        self.results.insert(name.to_owned(), result);
    }

    fn median(&self, what: &str, name: &str, measure: impl Fn(&Self) -> Figures) -> Figures {
        let mut all: Vec<Figures> = (0..self.arguments.rounds.max(1)).map(|_| measure(self)).collect();
        all.sort_by(|a, b| a.wall.total_cmp(&b.wall));
        let median = all.swap_remove(all.len() / 2);
        eprintln!("{name}: {what}: {median}");
        median
    }

    fn pull(&self, image: &str, key: Option<&Path>) -> Figures {
        let work = self.memory.path().join("work");
        let own = std::env::current_exe().unwrap();
        let mut command = vec![own.display().to_string(), "pull".to_owned(), image.to_owned()];
        command.extend(["--work-dir".to_owned(), work.display().to_string()]);
        command.extend(["--authority".to_owned(), self.lab.path().join("ca.pem").display().to_string()]);
        command.extend(key.into_iter().flat_map(|key| ["--key".to_owned(), key.display().to_string()]));
        let figures = Figures::of(&command);
        fs::remove_dir_all(work).unwrap();
        figures
    }

    /// What there was before: the blobs are stored as they are, then unpacked.
    fn copy_and_unpack(&self, image: &str) -> Figures {
        let (layout, bundle) = (self.memory.path().join("layout"), self.memory.path().join("bundle"));
        let [source, target, local] = [
            format!("docker://{image}"),
            format!("oci:{}:latest", layout.display()),
            format!("{}:latest", layout.display()),
        ];
        let certificates = self.lab.path().join("registry/certificates");
        let copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-cert-dir", certificates.to_str().unwrap()];
        let copied = Figures::of(&[&copy[..], &[&source, &target]].concat());
        let unpacked = Figures::of(&["umoci", "unpack", "--image", &local, bundle.to_str().unwrap()]);
        fs::remove_dir_all(layout).unwrap();
        fs::remove_dir_all(bundle).unwrap();
        copied.then(&unpacked)
    }

    fn encrypt(&self, layout: &Path) -> (PathBuf, PathBuf) {
        let (encrypted, key) = (layout.with_extension("encrypted"), layout.with_extension("key"));
        let source = format!("oci:{}:latest", layout.display());
        let key_options =
            ["--generate-key", "--key-file", key.to_str().unwrap(), "--key-id", "kbs:///default/key/bench"];
        let arguments = [&["image", "encrypt"], &key_options[..], &[&source, encrypted.to_str().unwrap()]].concat();
        run(Lab::program("cocoon"), arguments);
        (encrypted, key)
    }
}

/// The image's name for a pull on this machine.
fn local(image: &str) -> String {
    let (_, rest) = image.split_once(':').unwrap();
    format!("127.0.0.1:{rest}")
}
