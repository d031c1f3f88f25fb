//! The key that tokens are sealed with, from a file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use ringfence_core::{Error, ErrorKind, Result, TokenKey};

/// The longest key file, in bytes: more is a mistake in the path.
const BYTES_MAX: u64 = 4096;

/// The rights that a key file must not give: any to everybody, and to its group that of writing.
const TOO_OPEN: u32 = 0o027;

/// Reads a key: every byte of the file counts, a line end as well. Errors with [`ErrorKind::InvalidUrl`].
pub(crate) fn read(path: &str) -> Result<TokenKey> {
    let invalid =
        |why: String| Error::new(ErrorKind::InvalidUrl, format!("the token key file {path}: {why}"));
    let unreadable = |error: std::io::Error| invalid("it cannot be read".to_owned()).because(error);
    if !path.starts_with('/') {
        return Err(invalid(
            "it is named by an absolute path, as in token_key_file=/etc/ringfence/key".to_owned(),
        ));
    }
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(invalid("it is no file".to_owned()));
    }
    if about.mode() & TOO_OPEN != 0 {
        let mode = about.mode() & 0o777;
        return Err(invalid(format!(
            "others can use it (mode {mode:04o}): chmod 600 makes it a secret again"
        )));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(invalid(format!("it has more than {BYTES_MAX} bytes")));
    }
    TokenKey::new(&bytes).map_err(|error| invalid(error.message().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_file_is_a_secret_of_enough_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let read_as = |bytes: &[u8], mode| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(path.to_str().unwrap())
        };
        let secret: Vec<u8> = (0..32).collect();
        for mode in [0o600, 0o400, 0o640, 0o440] {
            read_as(&secret, mode).unwrap();
        }
        for (bytes, mode, why) in [
            (&secret[..], 0o644, "mode 0644"),
            (&secret, 0o604, "mode 0604"),
            (&secret, 0o620, "mode 0620"),
            (&secret[..31], 0o600, "at least 32 bytes, this one has 31"),
            (&[7; 4097], 0o600, "more than 4096 bytes"),
        ] {
            let refused = read_as(bytes, mode).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidUrl);
            assert!(refused.to_string().contains(why), "{refused}");
        }
        for (path, why) in
            [("key", "an absolute path"), ("/dev/null", "no file"), ("/nowhere/key", "cannot be read")]
        {
            let refused = read(path).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
