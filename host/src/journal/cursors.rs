//! The ids of streams: a place in each of their channels.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::Channel;

/// The bytes that stand for a channel, and for a place in it.
const CHANNEL_BYTES: usize = 8;
const PLACE_BYTES: usize = CHANNEL_BYTES + 8;
/// The bytes that find mistakes. They find no forgery: a forged id shows nothing that its maker
/// may not read.
const CHECK_BYTES: usize = 4;
/// No stream has more channels.
const PLACES_MAX: usize = 64;

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// With what is written from now on.
    Now,
    /// With what the journal still has.
    Earliest,
    /// After an id of a stream.
    After(Cursors),
}

impl Begin {
    /// What a client asks for, if it is an id or `earliest`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" => Some(Self::Now),
            "earliest" => Some(Self::Earliest),
            id => Cursors::parse(id).map(Self::After),
        }
    }
}

/// The number of the last entry that was told, for each channel; 0: before the first of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursors(Vec<([u8; CHANNEL_BYTES], i64)>);

impl Cursors {
    /// The number for a channel, if there is one.
    pub fn of(&self, channel: &Channel) -> Option<i64> {
        let name = name(channel);
        let place = self.0.iter().find(|(known, _)| *known == name);
        place.map(|(_, seq)| *seq)
    }

    fn parse(id: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (places, check) = bytes.split_last_chunk::<CHECK_BYTES>()?;
        if crc32fast::hash(places).to_be_bytes() != *check {
            return None;
        }
        let (places, rest) = places.as_chunks::<PLACE_BYTES>();
        if !rest.is_empty() || places.is_empty() || places.len() > PLACES_MAX {
            return None;
        }
        let place = |bytes: &[u8; PLACE_BYTES]| {
            let (name, seq) = bytes.split_first_chunk::<CHANNEL_BYTES>()?;
            Some((*name, i64::from_be_bytes(seq.try_into().ok()?)))
        };
        places.iter().map(place).collect::<Option<_>>().map(Self)
    }
}

impl std::fmt::Display for Cursors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = Vec::with_capacity(self.0.len() * PLACE_BYTES + CHECK_BYTES);
        for (name, seq) in &self.0 {
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&seq.to_be_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl<'c> FromIterator<(&'c [u8; CHANNEL_BYTES], i64)> for Cursors {
    fn from_iter<I: IntoIterator<Item = (&'c [u8; CHANNEL_BYTES], i64)>>(places: I) -> Self {
        Self(places.into_iter().map(|(name, seq)| (*name, seq)).collect())
    }
}

/// What stands for a channel in an id.
pub(super) fn name(channel: &Channel) -> [u8; CHANNEL_BYTES] {
    let hash = Sha256::new()
        .chain_update(channel.app_id)
        .chain_update(channel.topic.as_bytes())
        .finalize();
    let mut name = [0; CHANNEL_BYTES];
    name.copy_from_slice(&hash[..CHANNEL_BYTES]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::AppId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_reads_back_and_garbage_is_none(seqs in prop::collection::vec(0..i64::MAX, 1..50), garbage in ".{0,80}") {
            let app_id = AppId::new();
            let channels: Vec<_> = (0..seqs.len())
                .map(|n| Channel::of_topic(app_id, &format!("t{n}")))
                .collect();
            let names: Vec<_> = channels.iter().map(name).collect();
            let cursors: Cursors = names.iter().zip(seqs.iter().copied()).collect();
            let id = cursors.to_string();
            prop_assert_eq!(Begin::parse(&id), Some(Begin::After(cursors.clone())));
            for (channel, seq) in channels.iter().zip(&seqs) {
                prop_assert_eq!(cursors.of(channel), Some(*seq));
            }
            prop_assert_eq!(cursors.of(&Channel::of_topic(app_id, "other")), None);
            prop_assert_eq!(Begin::parse(&id[1..]), None);
            if !garbage.is_empty() && garbage != "earliest" {
                prop_assert_eq!(Begin::parse(&garbage), None);
            }
        }
    }
}
