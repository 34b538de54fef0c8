//! [`Message`]: a message from the hypervisor or from a port, as it lay in a slot of the message page.

use core::fmt;

/// The type of a message (`HV_MESSAGE_TYPE`). Any value is possible; those with bit 31 set come from the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageType(pub u32);

impl MessageType {
    /// `HvMessageTypeNone`: the slot is empty.
    pub const NONE: Self = Self(0);
    /// The VMBus's channel messages, in both directions.
    pub const CHANNEL: Self = Self(1);
    /// `HvMessageTimerExpired`: a synthetic timer in message mode.
    pub const TIMER_EXPIRED: Self = Self(0x8000_0010);
}

/// The end of a synthetic timer's time, as its message tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerExpiry {
    /// Which of the processor's timers.
    pub timer: u32,
    /// When it was due, in units of 100 ns.
    pub due_at: u64,
    /// When the message was delivered, in units of 100 ns.
    pub delivered_at: u64,
}

/// A private copy of a message slot: the host cannot change it any more. What is in it is still an allegation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; Self::LEN],
}

impl Message {
    /// The size of a slot in bytes.
    pub(super) const LEN: usize = 256;
    /// Where the payload begins.
    const HEADER_LEN: usize = 16;

    pub(super) const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self { bytes }
    }

    fn field<const FIELD_LEN: usize>(&self, offset: usize) -> [u8; FIELD_LEN] {
        let field = self.bytes.get(offset..).and_then(<[u8]>::first_chunk);
        debug_assert!(field.is_some(), "offsets are constants within the message");
        field.copied().unwrap_or([0; FIELD_LEN])
    }

    /// Returns the type.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        MessageType(u32::from_le_bytes(self.field(0)))
    }

    /// Returns how many bytes of payload the host claims: more than 240 is a lie.
    #[must_use]
    pub fn claimed_payload_len(&self) -> usize {
        usize::from(u8::from_le_bytes(self.field(4)))
    }

    /// Returns the payload: as many bytes as the host claims, but never more than the slot holds (240).
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let room = self.bytes.get(Self::HEADER_LEN..).unwrap_or_default();
        room.get(..self.claimed_payload_len()).unwrap_or(room)
    }

    /// Returns the port or partition that the message claims to come from.
    #[must_use]
    pub fn sender(&self) -> u64 {
        u64::from_le_bytes(self.field(8))
    }

    /// Returns what a timer's message says; `None` for messages of other types or too short.
    #[must_use]
    pub fn timer_expiry(&self) -> Option<TimerExpiry> {
        if self.message_type() != MessageType::TIMER_EXPIRED {
            return None;
        }
        let payload: &[u8; 24] = self.payload().first_chunk()?;
        let (words, _) = payload.as_chunks::<8>();
        let [first, due_at, delivered_at] = *words.first_chunk()?;
        let [timer, _] = *first.as_chunks::<4>().0.first_chunk()?;
        Some(TimerExpiry {
            timer: u32::from_le_bytes(timer),
            due_at: u64::from_le_bytes(due_at),
            delivered_at: u64::from_le_bytes(delivered_at),
        })
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Message")
            .field("type", &self.message_type())
            .field("sender", &self.sender())
            .field("payload", &self.payload())
            .finish()
    }
}
