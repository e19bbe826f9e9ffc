//! The envelope: AES-256-GCM, a fresh random 96-bit nonce for every seal, the master key's id beside it.
//!
//! Random nonces are safe here: a vault would need some 2^32 seals under one master key before a repetition becomes thinkable
//! (NIST SP 800-38D, section 8.3), and a rotation starts the count again.

use crate::engine::catalog::SecretRef;
use crate::store::secret::Secret;
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, AeadInPlace, KeyInit, Payload};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of a master key.
pub const MASTER_BYTES: usize = 32;

/// A file that is meant to hold one secret and is longer than this does not.
const SECRET_FILE_MAX: u64 = 64 * 1024;

/// What a sealed key belongs to. It is authenticated: a sealed key moved to another row does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Belongs<'a> {
    /// The account; empty: the platform.
    pub account: &'a str,
    /// The provider's name.
    pub provider: &'a str,
    /// The key's name.
    pub name: &'a str,
    /// The owner's base URL. Bound too, when there is one: whoever can only edit rows must not be able to have the key sent elsewhere.
    pub base_url: Option<&'a str>,
}

/// A sealed key.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Which master key opens it.
    pub master_id: Box<str>,
    /// The nonce.
    pub nonce: [u8; 12],
    /// Ciphertext and tag.
    pub bytes: Box<[u8]>,
}

/// Why a sealed key does not open. Neither says anything about what is inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CannotOpen {
    /// It was sealed under a master key that is not here; its id.
    OtherMaster(Box<str>),
    /// It was changed, or belongs to something else.
    Tampered,
}

/// A master key: its cipher and its id. The round keys are zeroed on drop.
pub struct MasterKey {
    id: Box<str>,
    cipher: Aes256Gcm,
}

/// The master key in use, and the one before it while a rotation is under way.
#[derive(Debug)]
pub struct Masters {
    /// Seals, and opens what it sealed.
    pub current: MasterKey,
    /// Only opens.
    pub previous: Option<MasterKey>,
}

impl MasterKey {
    /// Reads 32 bytes in base64.
    pub fn parse(text: &str) -> Result<MasterKey, String> {
        let wrong = || "a master key is 32 bytes in base64, as `weir vault init` prints it".to_owned();
        let mut bytes = Zeroizing::new([0u8; MASTER_BYTES + 4]);
        let length = STANDARD.decode_slice(text.trim(), &mut *bytes).map_err(|_| wrong())?;
        let key: &[u8; MASTER_BYTES] = bytes[..length].try_into().map_err(|_| wrong())?;
        Ok(MasterKey::new(key))
    }

    /// A master key of its bytes.
    pub fn new(bytes: &[u8; MASTER_BYTES]) -> MasterKey {
        // The id tells master keys apart and nothing about them: a hash of 256 random bits under a prefix of its own.
        let digest = Sha256::new().chain_update(b"weir master key id\0").chain_update(bytes).finalize();
        let id: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        MasterKey { id: id.into(), cipher: Aes256Gcm::new(bytes.into()) }
    }

    /// A new one in base64, to be kept by the operator.
    pub fn generate() -> Secret {
        let bytes = Zeroizing::new(rand::random::<[u8; MASTER_BYTES]>());
        Secret::new(STANDARD.encode(*bytes))
    }

    /// Eight bytes in hex; not secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn seal(&self, belongs: Belongs<'_>, key: &Secret) -> Result<Sealed, CannotOpen> {
        let nonce = rand::random::<[u8; 12]>();
        let payload = Payload { msg: key.expose().as_bytes(), aad: &associated(belongs) };
        // Fails only beyond 64 GiB.
        let bytes = self.cipher.encrypt(&nonce.into(), payload).map_err(|_| CannotOpen::Tampered)?;
        Ok(Sealed { master_id: self.id.clone(), nonce, bytes: bytes.into() })
    }

    fn open(&self, belongs: Belongs<'_>, sealed: &Sealed) -> Result<Secret, CannotOpen> {
        // Decrypted in place in a buffer that is zeroed whatever happens; GCM checks the tag before it decrypts.
        let mut buffer = Zeroizing::new(sealed.bytes.to_vec());
        let decrypted = self.cipher.decrypt_in_place(&sealed.nonce.into(), &associated(belongs), &mut *buffer);
        decrypted.map_err(|_| CannotOpen::Tampered)?;
        let text = std::str::from_utf8(&buffer).map_err(|_| CannotOpen::Tampered)?;
        Ok(Secret::copied(text))
    }
}

impl Masters {
    /// Reads the references. The error names the reference, never what stands behind it.
    pub fn resolve(current: &SecretRef, previous: Option<&SecretRef>) -> Result<Masters, String> {
        let read = |what: &str, reference: &SecretRef| {
            let secret = resolve_plain(reference).map_err(|why| format!("vault.{what}: {why}"))?;
            MasterKey::parse(secret.expose()).map_err(|why| format!("vault.{what}: {why}"))
        };
        let current = read("master_key", current)?;
        let previous = previous.map(|reference| read("previous_key", reference)).transpose()?;
        Ok(Masters { current, previous })
    }

    /// Seals under the current master key.
    pub fn seal(&self, belongs: Belongs<'_>, key: &Secret) -> Result<Sealed, CannotOpen> {
        self.current.seal(belongs, key)
    }

    /// Opens with whichever master key sealed it.
    pub fn open(&self, belongs: Belongs<'_>, sealed: &Sealed) -> Result<Secret, CannotOpen> {
        let master = [Some(&self.current), self.previous.as_ref()].into_iter().flatten().find(|master| master.id == sealed.master_id);
        master.ok_or_else(|| CannotOpen::OtherMaster(sealed.master_id.clone()))?.open(belongs, sealed)
    }

    /// Whether one of the master keys has this id.
    pub fn knows(&self, master_id: &str) -> bool {
        *self.current.id == *master_id || self.previous.as_ref().is_some_and(|previous| *previous.id == *master_id)
    }
}

/// Reads a secret from the environment or a file, trimmed. The error names the reference only.
pub fn resolve_plain(reference: &SecretRef) -> Result<Secret, String> {
    let text = match reference {
        SecretRef::Env(name) => std::env::var(&**name).map_err(|_| format!("the environment variable {name} is not set"))?,
        SecretRef::File(path) => {
            use std::io::Read;
            let mut text = Zeroizing::new(String::new());
            let file = std::fs::File::open(&**path).map_err(|error| format!("{path}: {error}"))?;
            file.take(SECRET_FILE_MAX + 1).read_to_string(&mut text).map_err(|error| format!("{path}: {error}"))?;
            if text.len() as u64 > SECRET_FILE_MAX {
                return Err(format!("{path} is too long for a secret"));
            }
            text.to_string()
        }
        SecretRef::Vault(name) => return Err(format!("vault:{name} cannot be used here")),
    };
    let text = Zeroizing::new(text);
    if text.trim().is_empty() {
        return Err(format!("{} is empty", named(reference)));
    }
    Ok(Secret::copied(text.trim()))
}

/// A reference as it is written in a file.
pub fn named(reference: &SecretRef) -> String {
    match reference {
        SecretRef::Env(name) => format!("env:{name}"),
        SecretRef::File(path) => format!("file:{path}"),
        SecretRef::Vault(name) => format!("vault:{name}"),
    }
}

/// The associated data: a version, then each part behind its length, so that no two triples read the same.
fn associated(belongs: Belongs<'_>) -> Vec<u8> {
    let parts = [Some(belongs.account), Some(belongs.provider), Some(belongs.name), belongs.base_url];
    let mut data = Vec::with_capacity(64);
    data.extend_from_slice(b"weir vault 1");
    for part in parts.into_iter().flatten() {
        data.extend_from_slice(&(part.len() as u64).to_le_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    data
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(under {})", self.master_id)
    }
}

impl fmt::Display for CannotOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CannotOpen::OtherMaster(id) => {
                write!(f, "it is sealed under the master key {id}, which is neither vault.master_key nor vault.previous_key")
            }
            CannotOpen::Tampered => f.write_str("it was changed or moved since it was sealed; set it again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLATFORM: Belongs<'static> = Belongs { account: "", provider: "openai", name: "openai", base_url: None };

    fn masters(current: u8, previous: Option<u8>) -> Masters {
        Masters { current: MasterKey::new(&[current; 32]), previous: previous.map(|byte| MasterKey::new(&[byte; 32])) }
    }

    #[test]
    fn opens_what_it_sealed_with_a_fresh_nonce_each_time() {
        let masters = masters(1, None);
        let key = Secret::copied("sk-proj-0123456789abcdef");
        let (one, two) = (masters.seal(PLATFORM, &key).unwrap(), masters.seal(PLATFORM, &key).unwrap());
        assert_ne!(one.nonce, two.nonce);
        assert_ne!(one.bytes, two.bytes);
        assert_eq!(masters.open(PLATFORM, &one).unwrap(), key);
        assert_eq!(one.bytes.len(), key.expose().len() + 16);
    }

    #[test]
    fn a_change_anywhere_does_not_open() {
        let masters = masters(1, None);
        let sealed = masters.seal(PLATFORM, &Secret::copied("sk-proj-0123456789abcdef")).unwrap();
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert_eq!(masters.open(PLATFORM, &changed), Err(CannotOpen::Tampered));
        }
        let mut changed = sealed.clone();
        changed.nonce[0] ^= 1;
        assert_eq!(masters.open(PLATFORM, &changed), Err(CannotOpen::Tampered));
        for moved in [
            Belongs { account: "a", ..PLATFORM },
            Belongs { provider: "groq", ..PLATFORM },
            Belongs { name: "b", ..PLATFORM },
            Belongs { base_url: Some("https://evil.example"), ..PLATFORM },
            // The same bytes cut elsewhere.
            Belongs { account: "o", provider: "penai", ..PLATFORM },
        ] {
            assert_eq!(masters.open(moved, &sealed), Err(CannotOpen::Tampered));
        }
    }

    #[test]
    fn the_previous_master_opens_and_a_stranger_is_named() {
        let sealed = masters(1, None).seal(PLATFORM, &Secret::copied("key")).unwrap();
        assert!(masters(2, Some(1)).open(PLATFORM, &sealed).is_ok());
        assert_eq!(masters(2, Some(3)).open(PLATFORM, &sealed), Err(CannotOpen::OtherMaster(sealed.master_id.clone())));
        assert!(masters(2, Some(1)).knows(&sealed.master_id) && !masters(2, None).knows(&sealed.master_id));
    }

    #[test]
    fn master_keys_are_parsed_strictly() {
        let text = MasterKey::generate();
        assert!(MasterKey::parse(text.expose()).is_ok());
        assert!(MasterKey::parse(&format!(" {}\n", text.expose())).is_ok());
        for wrong in ["", "short", &text.expose()[..40], &format!("{}AAAA", text.expose()), &"!".repeat(44)] {
            assert!(MasterKey::parse(wrong).unwrap_err().contains("32 bytes"));
        }
    }

    #[test]
    fn references_are_read_and_their_errors_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, " abc\n").unwrap();
        let file = |path: &std::path::Path| SecretRef::File(path.display().to_string().into());
        assert_eq!(resolve_plain(&file(&path)).unwrap().expose(), "abc");
        std::fs::write(&path, "\n").unwrap();
        assert!(resolve_plain(&file(&path)).unwrap_err().contains("empty"));
        assert!(resolve_plain(&file(&folder.path().join("none"))).unwrap_err().contains("none"));
        assert!(resolve_plain(&SecretRef::Env("WEIR_TEST_NO_SUCH_VARIABLE".into())).unwrap_err().contains("WEIR_TEST_NO_SUCH_VARIABLE"));
    }
}
