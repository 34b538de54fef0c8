//! Channel messages: the one table of them ([`MessageType::TABLE`]), and how any of them becomes bytes and is read back.
//!
//! Guest and host exchange them in SynIC messages of type [`CHANNEL_MESSAGE`]: at most 240 bytes, of which the first 8
//! are the number of the message's type and padding. A reader takes any bytes: too few for the type are an error, more
//! than it knows are ignored, and fields that an older peer leaves out are zero.
//!
//! Sources: Linux' `include/linux/hyperv.h`, FreeBSD's `vmbus_reg.h`, OpenVMM's `vmbus_core`; they agree where they
//! overlap.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::channel::{
    CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenChannelResult, RelIdReleased,
};
use super::contact::{InitiateContact, Unload, UnloadResponse, VersionResponse};
use super::gpadl::{GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown};
use super::offer::{AllOffersDelivered, OfferChannel, RequestOffers, RescindChannelOffer};
use super::version::Version;

/// The type of the SynIC messages that carry channel messages, in both directions (`VMBUS_MESSAGE_TYPE`).
pub const CHANNEL_MESSAGE: u32 = 1;

/// The most bytes that a message has, header included (`HV_MESSAGE_PAYLOAD_BYTE_COUNT`).
pub const MAX_MESSAGE_LEN: usize = 240;

/// The bytes before a message's fields: its type and padding.
pub const HEADER_LEN: usize = 8;

/// The type of a channel message. Newer hosts may send numbers that have no constant here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageType(pub u32);

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The guest (the client end).
    Guest,
    /// The host (the server end).
    Host,
}

/// A row of the table of channel messages.
#[derive(Clone, Copy, Debug)]
pub struct MessageRow {
    /// The number on the wire.
    pub message_type: MessageType,
    /// The name in this crate.
    pub name: &'static str,
    /// Who sends it.
    pub sender: Sender,
    /// The first version that has it.
    pub since: Version,
    /// The fewest bytes that it may have, header included.
    pub min_len: usize,
}

/// Bytes are not the message that they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Too few bytes even for the header.
    #[error("a message of {len} bytes is shorter than its header")]
    NoHeader {
        /// How many bytes there were.
        len: usize,
    },
    /// Too few bytes for the message's fields.
    #[error("{message_type} has {len} bytes, at least {min_len} are needed")]
    TooShort {
        /// What the message says it is.
        message_type: MessageType,
        /// How many bytes there were.
        len: usize,
        /// How many there have to be.
        min_len: usize,
    },
    /// Another type of message.
    #[error("expected {expected}, found {found}")]
    OtherType {
        /// The type that was asked for.
        expected: MessageType,
        /// The type that the bytes have.
        found: MessageType,
    },
    /// A field contradicts the length or another field.
    #[error("{message_type} contradicts itself: {what} is {value:#x}")]
    Inconsistent {
        /// The message's type.
        message_type: MessageType,
        /// The field.
        what: &'static str,
        /// The field's value.
        value: u64,
    },
}

/// A channel message: its fields as they stand on the wire, without the header.
pub trait ChannelMessage: Sized + FromBytes + IntoBytes + Immutable + KnownLayout {
    /// The type that the header names.
    const TYPE: MessageType;
    /// The fewest bytes that it may have, header included.
    const MIN_LEN: usize;

    /// Returns the message in `bytes`.
    ///
    /// # Errors
    ///
    /// [`ParseError`] if the bytes are another message or too short.
    fn decode(bytes: &[u8]) -> Result<Self, ParseError> {
        let found = MessageType::of(bytes)?;
        if found != Self::TYPE {
            return Err(ParseError::OtherType {
                expected: Self::TYPE,
                found,
            });
        }
        let short = ParseError::TooShort {
            message_type: found,
            len: bytes.len(),
            min_len: Self::MIN_LEN,
        };
        if bytes.len() < Self::MIN_LEN {
            return Err(short);
        }
        let mut message = Self::new_zeroed();
        let fields = bytes.get(HEADER_LEN..).ok_or(short)?;
        for (target, source) in message.as_mut_bytes().iter_mut().zip(fields) {
            *target = *source;
        }
        Ok(message)
    }

    /// Returns the message as bytes, header included.
    fn encode(&self) -> MessageBytes {
        let mut bytes = MessageBytes::header(Self::TYPE);
        let written = bytes.append(self.as_bytes());
        debug_assert!(written.is_ok(), "checked at compile time for every row of the table");
        bytes
    }
}

/// Bytes do not fit into a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message has room for 240 bytes")]
pub struct MessageFull;

/// A message ready to be posted: up to 240 bytes. What is not written is zero.
#[derive(Clone, Copy)]
pub struct MessageBytes {
    bytes: [u8; MAX_MESSAGE_LEN],
    len: usize,
}

impl MessageBytes {
    /// Makes a message of only a header.
    #[must_use]
    pub fn header(message_type: MessageType) -> Self {
        let mut message = Self {
            bytes: [0; MAX_MESSAGE_LEN],
            len: HEADER_LEN,
        };
        for (target, source) in message.bytes.iter_mut().zip(message_type.0.to_le_bytes()) {
            *target = source;
        }
        message
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// [`MessageFull`] if they do not fit; nothing is appended then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), MessageFull> {
        let end = self.len.checked_add(bytes.len()).ok_or(MessageFull)?;
        let target = self.bytes.get_mut(self.len..end).ok_or(MessageFull)?;
        target.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Shortens the message to `len` bytes: for a peer that knows fewer fields. A longer `len` changes nothing.
    #[must_use]
    pub fn truncated(mut self, len: usize) -> Self {
        if let Some(cut) = self.bytes.get_mut(len..self.len) {
            cut.fill(0);
            self.len = len;
        }
        self
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Returns the type that the header names.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        MessageType::of(self.as_slice()).unwrap_or(MessageType(0))
    }
}

impl fmt::Debug for MessageBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} bytes", self.message_type(), self.len)
    }
}

macro_rules! channel_messages {
    ($($(#[$attribute:meta])* $number:literal $constant:ident $message:ident from $sender:ident since $since:ident
        $(at_least $min_len:literal)?;)*) => {
        impl MessageType {
            $($(#[$attribute])* pub const $constant: Self = Self($number);)*

            /// Every channel message that this crate speaks.
            pub const TABLE: &'static [MessageRow] = &[$(MessageRow {
                message_type: Self($number),
                name: stringify!($constant),
                sender: Sender::$sender,
                since: Version::$since,
                min_len: <$message as ChannelMessage>::MIN_LEN,
            },)*];
        }

        $(
            impl ChannelMessage for $message {
                const TYPE: MessageType = MessageType::$constant;
                const MIN_LEN: usize = channel_messages!(@min_len $message $($min_len)?);
            }
            const _: () = assert!(
                HEADER_LEN + size_of::<$message>() <= MAX_MESSAGE_LEN
                    && <$message as ChannelMessage>::MIN_LEN <= HEADER_LEN + size_of::<$message>()
            );
        )*
    };
    (@min_len $message:ident) => { HEADER_LEN.saturating_add(size_of::<$message>()) };
    (@min_len $message:ident $min_len:literal) => { $min_len };
}

channel_messages! {
    /// A channel is offered.
    1 OFFER_CHANNEL OfferChannel from Host since V2_4;
    /// An offer is withdrawn.
    2 RESCIND_CHANNEL_OFFER RescindChannelOffer from Host since V2_4;
    /// The guest asks for the offers.
    3 REQUEST_OFFERS RequestOffers from Guest since V2_4;
    /// All offers that there are at the moment have been sent.
    4 ALL_OFFERS_DELIVERED AllOffersDelivered from Host since V2_4;
    /// The guest opens a channel.
    5 OPEN_CHANNEL OpenChannel from Guest since V2_4;
    /// The answer to [`MessageType::OPEN_CHANNEL`].
    6 OPEN_CHANNEL_RESULT OpenChannelResult from Host since V2_4;
    /// The guest closes a channel. There is no answer.
    7 CLOSE_CHANNEL CloseChannel from Guest since V2_4;
    /// The guest describes memory that it shares: the first part.
    8 GPADL_HEADER GpadlHeader from Guest since V2_4;
    /// The guest describes memory that it shares: a further part.
    9 GPADL_BODY GpadlBody from Guest since V2_4;
    /// The answer to a completely described GPADL.
    10 GPADL_CREATED GpadlCreated from Host since V2_4;
    /// The guest wants a GPADL's memory back.
    11 GPADL_TEARDOWN GpadlTeardown from Guest since V2_4;
    /// The answer to [`MessageType::GPADL_TEARDOWN`]: the host has given up the memory.
    12 GPADL_TORNDOWN GpadlTorndown from Host since V2_4;
    /// The guest no longer uses a withdrawn channel's id.
    13 REL_ID_RELEASED RelIdReleased from Guest since V2_4;
    /// The guest asks for a connection in a certain version. The fields beyond the fifth came with 6.0.
    14 INITIATE_CONTACT InitiateContact from Guest since V2_4 at_least 40;
    /// The answer to [`MessageType::INITIATE_CONTACT`]. Some hosts send only its first byte (QEMU pads to 8 + 4).
    15 VERSION_RESPONSE VersionResponse from Host since V2_4 at_least 9;
    /// The guest ends the connection.
    16 UNLOAD Unload from Guest since V3_0;
    /// The answer to [`MessageType::UNLOAD`]: the host has given up everything.
    17 UNLOAD_RESPONSE UnloadResponse from Host since V3_0;
    /// The guest wants a channel's interrupts on another processor.
    22 MODIFY_CHANNEL ModifyChannel from Guest since V4_1;
    /// The answer to [`MessageType::MODIFY_CHANNEL`].
    24 MODIFY_CHANNEL_RESPONSE ModifyChannelResponse from Host since V5_3;
}

impl MessageType {
    /// Returns the type that the header in `bytes` names.
    ///
    /// # Errors
    ///
    /// [`ParseError::NoHeader`] if there is none.
    pub const fn of(bytes: &[u8]) -> Result<Self, ParseError> {
        match bytes.first_chunk::<HEADER_LEN>() {
            Some(&[a, b, c, d, ..]) => Ok(Self(u32::from_le_bytes([a, b, c, d]))),
            None => Err(ParseError::NoHeader { len: bytes.len() }),
        }
    }

    /// Returns the table's row for this type, or `None` for a type that is not in it.
    #[must_use]
    pub fn row(self) -> Option<&'static MessageRow> {
        Self::TABLE.iter().find(|row| row.message_type == self)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some(row) => write!(formatter, "{} ({})", row.name, self.0),
            None => write!(formatter, "message type {:#x}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
