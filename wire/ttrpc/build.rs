//! Generates messages, clients and servers from `proto/`, without protoc.

use std::error::Error;
use std::path::PathBuf;

use protobuf::reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor, OneofDescriptor, RuntimeFieldType, RuntimeType,
};
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize, ProtobufCustomizeCallback};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .inputs(FILES.map(|file| format!("proto/{file}.proto")))
        .rust_protobuf()
        .rust_protobuf_customize(
            // The lite runtime leaves out reflection, which the guest's binary would carry for nothing.
            ProtobufCustomize::default().lite_runtime(true).generate_accessors(false).gen_mod_rs(false),
        )
        .rust_protobuf_customize_callback(PolicyJson)
        .customize(Customize { async_all: true, gen_mod: false, ..Default::default() })
        .run()?;

    // The generators' own index opens with an inner attribute, which `include!` does not take.
    let services =
        FILES.into_iter().filter(|file| !matches!(*file, "oci" | "types")).map(|file| format!("{file}_ttrpc"));
    let modules = FILES.map(str::to_owned).into_iter().chain(services).map(|module| format!("pub mod {module};\n"));
    std::fs::write(out.join("index.rs"), modules.collect::<String>())?;
    Ok(())
}

/// Gives the guest agent's messages the JSON form that policies are written against.
struct PolicyJson;

impl PolicyJson {
    fn covers(file: &FileDescriptor) -> bool {
        matches!(file.name(), "agent.proto" | "oci.proto" | "types.proto")
    }

    fn attribute(covered: bool, attribute: &str) -> ProtobufCustomize {
        if covered { ProtobufCustomize::default().before(attribute) } else { ProtobufCustomize::default() }
    }
}

impl ProtobufCustomizeCallback for PolicyJson {
    fn message(&self, message: &MessageDescriptor) -> ProtobufCustomize {
        Self::attribute(
            Self::covers(message.file_descriptor()),
            "#[derive(::serde::Serialize, ::serde::Deserialize)]\n#[serde(default, deny_unknown_fields)]",
        )
    }

    fn field(&self, field: &FieldDescriptor) -> ProtobufCustomize {
        let form = match field.runtime_field_type() {
            RuntimeFieldType::Singular(RuntimeType::Message(_)) => "message",
            RuntimeFieldType::Singular(RuntimeType::Enum(_)) => "enumeration",
            _ => return ProtobufCustomize::default(),
        };
        Self::attribute(
            Self::covers(field.containing_message().file_descriptor()),
            &format!("#[serde(with = \"crate::policy_json::{form}\")]"),
        )
    }

    fn special_field(&self, message: &MessageDescriptor, _: &str) -> ProtobufCustomize {
        Self::attribute(Self::covers(message.file_descriptor()), "#[serde(skip)]")
    }

    fn enumeration(&self, _: &EnumDescriptor) -> ProtobufCustomize {
        ProtobufCustomize::default()
    }

    fn oneof(&self, oneof: &OneofDescriptor) -> ProtobufCustomize {
        Self::attribute(
            Self::covers(oneof.containing_message().file_descriptor()),
            "#[derive(::serde::Serialize, ::serde::Deserialize)]",
        )
    }
}

const FILES: [&str; 8] = [
    "agent",
    "attestation_agent",
    "confidential_data_hub",
    "health",
    "key_provider",
    "oci",
    "remote_hypervisor",
    "types",
];
