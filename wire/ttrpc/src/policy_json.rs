//! The JSON form of messages that policies are written against: unset messages are null, enums are integers.

/// A message field that may be unset.
pub(crate) mod message {
    use protobuf::MessageField;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        field: &MessageField<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        field.as_ref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<MessageField<T>, D::Error> {
        Ok(Option::<T>::deserialize(deserializer)?.into())
    }
}

/// An enum field, whose value may be one that this version does not know.
pub(crate) mod enumeration {
    use protobuf::{Enum, EnumOrUnknown};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<E: Enum, S: Serializer>(
        field: &EnumOrUnknown<E>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(field.value())
    }

    pub(crate) fn deserialize<'de, E: Enum, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<EnumOrUnknown<E>, D::Error> {
        i32::deserialize(deserializer).map(EnumOrUnknown::from_i32)
    }
}
