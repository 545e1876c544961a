//! Paths as bytes, for fields that travel between processes (`#[serde(with = "packed")]`): serde's own form
//! of a path has to be UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use postern_shim::wire::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is, or holds, paths.
pub(crate) trait Packed: Sized {
    type Form: Serialize + for<'de> Deserialize<'de>;

    fn pack(&self) -> Self::Form;
    fn unpack(form: Self::Form) -> Self;
}

impl Packed for PathBuf {
    type Form = Bytes;

    fn pack(&self) -> Bytes {
        Bytes(self.as_os_str().as_bytes().to_vec())
    }

    fn unpack(form: Bytes) -> Self {
        OsString::from_vec(form.0).into()
    }
}

impl<T: Packed> Packed for Vec<T> {
    type Form = Vec<T::Form>;

    fn pack(&self) -> Self::Form {
        self.iter().map(Packed::pack).collect()
    }

    fn unpack(form: Self::Form) -> Self {
        form.into_iter().map(Packed::unpack).collect()
    }
}

impl<T: Packed> Packed for Option<T> {
    type Form = Option<T::Form>;

    fn pack(&self) -> Self::Form {
        self.as_ref().map(Packed::pack)
    }

    fn unpack(form: Self::Form) -> Self {
        form.map(Packed::unpack)
    }
}

impl<T: Packed, With: Clone + Serialize + for<'de> Deserialize<'de>> Packed for (T, With) {
    type Form = (T::Form, With);

    fn pack(&self) -> Self::Form {
        (self.0.pack(), self.1.clone())
    }

    fn unpack((path, with): Self::Form) -> Self {
        (T::unpack(path), with)
    }
}

pub(crate) fn serialize<T: Packed, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.pack().serialize(serializer)
}

pub(crate) fn deserialize<'de, T: Packed, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::Form::deserialize(deserializer).map(T::unpack)
}

#[cfg(test)]
mod tests {
    use postern_shim::wire::{pack, unpack};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Paths {
        #[serde(with = "super")]
        one: PathBuf,
        #[serde(with = "super")]
        perhaps: Option<PathBuf>,
        #[serde(with = "super")]
        several: Vec<PathBuf>,
        #[serde(with = "super")]
        with: Vec<(PathBuf, u8)>,
    }

    #[test]
    fn a_path_that_is_no_text_arrives() {
        let path = PathBuf::from(OsString::from_vec(b"/p\xff/\xfe".to_vec()));
        let paths = Paths {
            one: path.clone(),
            perhaps: Some(path.clone()),
            several: vec![path.clone(), PathBuf::new()],
            with: vec![(path, 7)],
        };
        assert_eq!(unpack::<Paths>(&pack(&paths).unwrap()).unwrap(), paths);
    }
}
