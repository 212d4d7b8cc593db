//! Why a header was refused, or a volume not opened.

/// Names the stage, the cause and what to do next; never holds a byte of a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no LUKS header.
    #[error(
        "volume header: the device has no LUKS2 header; next: use sourceType \"empty\" for a new volume, or check the device"
    )]
    NotLuks,
    /// LUKS, but not version 2.
    #[error("volume header: it is LUKS version {0}, and 2 is needed; next: convert it (cryptsetup convert)")]
    Version(u16),
    /// The device ends before the header does.
    #[error("volume header: the device ends before its header does; next: check that it is the whole device")]
    Truncated,
    /// A field of the binary part has a value that the format does not know.
    #[error("volume header: {what} is {found}; next: make the volume again")]
    Field {
        /// The field.
        what: &'static str,
        /// Its value.
        found: String,
    },
    /// The bytes are not those that were written.
    #[error(
        "volume header: the checksum of its {0} copy is wrong; next: if nobody has tampered with it, repair it (cryptsetup repair)"
    )]
    Checksum(&'static str),
    /// The two copies do not say the same.
    #[error(
        "volume header: its two copies differ; next: if nobody has tampered with it, repair it (cryptsetup repair)"
    )]
    CopiesDiffer,
    /// The JSON part is not the metadata of a volume.
    #[error("volume header: its metadata can't be read: {0}; next: make the volume again (cryptsetup luksFormat)")]
    Metadata(String),
    /// An algorithm or feature that is not on the list of those that are safe here.
    #[error("volume header: {what} is {found}, which is not allowed; next: make the volume again with {allowed}")]
    Forbidden {
        /// What the algorithm or feature is for.
        what: &'static str,
        /// What the header says.
        found: String,
        /// What it may say.
        allowed: &'static str,
    },
    /// Parts that lie outside the device or across one another, or a device without room.
    #[error("volume header: {0}; next: check that the device has the size it was formatted with")]
    Layout(String),
    /// More work than a guest may be made to do.
    #[error(
        "volume header: {what} of {found} is outside of {least} to {most}; next: make the key slot again (cryptsetup luksConvertKey)"
    )]
    Cost {
        /// Of what.
        what: &'static str,
        /// What the header demands.
        found: u64,
        /// What is allowed at least.
        least: u64,
        /// What is allowed at most.
        most: u64,
    },
    /// Not the owner's key, or not the owner's header.
    #[error(
        "volume key: it does not open the volume; next: check that the key belongs to this disk, and that the disk is genuine"
    )]
    WrongKey,
    /// An empty key protects nothing.
    #[error("volume key: it is empty; next: store a key of 32 random bytes")]
    EmptyKey,
    /// Argon2's memory can't be had.
    #[error(
        "volume key: {0} KiB of memory for Argon2 can't be had; next: give the guest more, or convert the key slot to pbkdf2"
    )]
    Memory(u32),
    /// The cryptographic library refused.
    #[error("volume key: the cryptographic library failed; next: check the guest's source of randomness")]
    Crypto,
}

impl Error {
    /// An entry of an allow list that was not met; what the disk says is cut to a readable length.
    pub(super) fn forbidden(what: &'static str, found: impl Into<String>, allowed: &'static str) -> Self {
        Self::Forbidden { what, found: excerpt(&found.into()), allowed }
    }
}

/// What an attacker may put into an error text.
pub(super) fn excerpt(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}
