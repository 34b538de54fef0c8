//! Making the connection: the ladder of versions, then the offers.

use core::sync::atomic::Ordering;

use super::config::Config;
use super::error::{ConnectError, Error};
use super::inner::{BusInner, Phase};
use super::processor::SINT;
use super::replies::{Answer, Key};
use super::{Bus, Deadline};
use crate::Platform;
use crate::fallible::Shared;
use crate::hyperv::{HypercallError, Hypervisor, Synic, SynicConfig};
use crate::platform::ProcessorIndex;
use crate::protocol::contact::{
    CONTACT_LEN_WITHOUT_CLIENT_ID, ConnectionState, FeatureFlags, InitiateContact, MessageTarget, VersionResponse,
    contact_connection,
};
use crate::protocol::offer::RequestOffers;
use crate::protocol::{ChannelMessage, ConnectionId, Version, VpIndex};

/// How a contact ended without an error.
enum Contact {
    Answered(VersionResponse),
    /// The host does not listen on that connection.
    NoSuchConnection,
}

impl Bus {
    pub(super) fn connect_inner(
        hypervisor: &'static Hypervisor,
        platform: &'static dyn Platform,
        config: Config,
    ) -> Result<Self, ConnectError> {
        let had_hypercalls = hypervisor.has_hypercalls();
        hypervisor.enable_hypercalls(platform, config.guest_id)?;
        let result = Self::connect_with_hypercalls(hypervisor, platform, config);
        if result.is_err() && !had_hypercalls {
            // Nothing of ours is in a call, so this cannot fail for that reason; and an error is on its way already.
            let _ = hypervisor.disable_hypercalls();
        }
        result
    }

    fn connect_with_hypercalls(
        hypervisor: &'static Hypervisor,
        platform: &'static dyn Platform,
        config: Config,
    ) -> Result<Self, ConnectError> {
        let bus = Self(Shared::try_new(BusInner::new(hypervisor, platform, config)?)?);
        let inner = &*bus.0;
        let current = platform.current_processor();
        if inner.processor(current).is_none() {
            return Err(ConnectError::NoSuchProcessor {
                current,
                processors: config.processors,
            });
        }
        let vp = inner.enter_processor(current)?;
        inner.message_processor.store(current.0, Ordering::Relaxed);
        if let Err(error) = inner.contact(vp) {
            inner.leave_processor(current);
            return Err(error);
        }
        inner.advance(Phase::Contacting, Phase::Connected);
        log::info!(
            "connected to the VMBus, version {}, {}",
            inner.version(),
            inner.connection()
        );
        if let Err(error) = inner.request_offers() {
            // Ended as well as it can be; the error that is told is the first one.
            let _ = bus.disconnect(Deadline::After(config.contact_timeout));
            return Err(ConnectError::Post {
                version: inner.version(),
                connection: inner.connection(),
                error,
            });
        }
        Ok(bus)
    }
}

impl BusInner {
    /// Turns the current processor's interrupt controller on. Context: task, on that processor and staying there.
    pub(super) fn enter_processor(&self, index: ProcessorIndex) -> Result<VpIndex, ConnectError> {
        let config = SynicConfig {
            end_of_interrupt: self.config.end_of_interrupt,
            ..SynicConfig::vmbus(self.config.vector)
        };
        let synic = Synic::enable(self.hypervisor, self.platform, config)?;
        let vp = self.hypervisor.vp_index();
        if let Some(processor) = self.processor(index) {
            processor.vp.store(vp.0, Ordering::Relaxed);
            // In a dispatch section, so that deferred work of this processor does not wait for the writer.
            let _order = self.messages.lock(self.platform);
            // Under the lock that offers are taken in under: one that came between the look and the store would raise the limit
            // of all processors but this one, which would then never see the channel's signals.
            synic.set_flag_limit(self.table.flag_limit());
            *processor.synic.write() = Some(synic);
        }
        // What came before anybody could look.
        self.mark(index);
        Ok(vp)
    }

    /// Turns the current processor's interrupt controller off.
    pub(super) fn leave_processor(&self, index: ProcessorIndex) {
        let Some(processor) = self.processor(index) else {
            return;
        };
        let synic = {
            let _order = self.messages.lock(self.platform);
            processor.synic.write().take()
        };
        if let Some(Err(error)) = synic.map(Synic::disable) {
            log::warn!("{error}");
        }
    }

    fn contact(&self, vp: VpIndex) -> Result<(), ConnectError> {
        let (newest, oldest) = (self.config.max_version, self.config.min_version);
        let rungs = Version::LADDER
            .into_iter()
            .filter(|version| (oldest..=newest).contains(version));
        let mut deaf_connection = None;
        let mut is_any_heard = false;
        let mut refused = None;
        for version in rungs {
            let connection = contact_connection(version);
            if deaf_connection == Some(connection) {
                continue;
            }
            let response = match self.ask_for(version, connection, vp)? {
                Contact::Answered(response) => response,
                Contact::NoSuchConnection => {
                    deaf_connection = Some(connection);
                    log::debug!("the host does not listen on {connection}, so it does not speak version {version}");
                    continue;
                }
            };
            is_any_heard = true;
            if !response.is_supported() {
                log::debug!("the host does not speak version {version}");
                continue;
            }
            if response.state() != ConnectionState::SUCCESSFUL {
                log::warn!(
                    "the host speaks version {version} but refuses the connection: state {}",
                    response.state().0
                );
                refused.get_or_insert(ConnectError::Refused {
                    version,
                    state: response.state(),
                });
                continue;
            }
            // The host may claim what nobody asked for.
            let features = if version >= Version::V6_0 {
                response.features() & self.wanted_features()
            } else {
                FeatureFlags::empty()
            };
            self.set_connection(version, response.message_connection(version), features);
            return Ok(());
        }
        Err(match refused {
            Some(refused) => refused,
            None if is_any_heard => ConnectError::NoCommonVersion { newest, oldest },
            None => ConnectError::NoBus,
        })
    }

    /// Returns the optional parts that this guest uses.
    const fn wanted_features(&self) -> FeatureFlags {
        match self.config.client_id {
            Some(_) => FeatureFlags::CLIENT_ID,
            None => FeatureFlags::empty(),
        }
    }

    /// Asks for one version and waits for the answer.
    fn ask_for(&self, version: Version, connection: ConnectionId, vp: VpIndex) -> Result<Contact, ConnectError> {
        let (interrupt_page, monitor_pages) = self.page_addresses()?;
        let target = MessageTarget {
            sint: SINT,
            vtl: 0,
            features: self.wanted_features(),
        };
        let client_id = self.config.client_id.filter(|_| version >= Version::V6_0);
        let contact = InitiateContact::new(version, vp, target, interrupt_page, monitor_pages, client_id).encode();
        let contact = match client_id {
            Some(_) => contact,
            None => contact.truncated(CONTACT_LEN_WITHOUT_CLIENT_ID),
        };
        let no_answer = ConnectError::NoAnswer {
            version,
            connection,
            waited: self.config.contact_timeout,
        };
        // The table of waiters is empty now.
        let ticket = self.replies.expect(Key::Contact, None).map_err(|_| no_answer)?;
        let mut is_deaf = false;
        let posted = self.retry(None, None, || match self.post_contact(connection, contact.as_slice()) {
            Err(HypercallError::InvalidConnection) => {
                is_deaf = true;
                Ok(())
            }
            result => Ok(result?),
        });
        if let Err(error) = posted {
            let error = match error {
                Error::Hypercall(error) => error,
                _ => HypercallError::Disabled,
            };
            return Err(ConnectError::Post {
                version,
                connection,
                error,
            });
        }
        if is_deaf {
            return Ok(Contact::NoSuchConnection);
        }
        // From now on the host may use the pages, until it says that it does not.
        self.set_given_up(false);
        let until = Some(self.now().saturating_add(self.config.contact_timeout));
        // The answer below tells whether it came.
        let _ = self.wait_until(until, || ticket.is_answered());
        match ticket.answer() {
            Some(Answer::Version(response)) => {
                let is_connected = response.is_supported() && response.state() == ConnectionState::SUCCESSFUL;
                self.set_given_up(!is_connected);
                Ok(Contact::Answered(response))
            }
            _ => Err(no_answer),
        }
    }

    fn request_offers(&self) -> Result<(), HypercallError> {
        self.accepts_offers.store(true, Ordering::Release);
        let request = RequestOffers {}.encode();
        self.post(&request, None, None).map_err(|error| match error {
            Error::Hypercall(error) => error,
            _ => HypercallError::Disabled,
        })?;
        if self
            .wait_for_offers(Deadline::After(self.config.offers_timeout))
            .is_err()
        {
            log::warn!(
                "the host's list of offers is incomplete after {:?}",
                self.config.offers_timeout
            );
        }
        Ok(())
    }

    /// Waits until all offers that there are at the moment have come.
    pub(super) fn wait_for_offers(&self, deadline: Deadline) -> Result<(), Error> {
        let until = deadline.resolve(self.now());
        let is_done = || self.has_all_offers.load(Ordering::Acquire) || self.phase() != Phase::Connected;
        self.wait_until(until, is_done)?;
        if self.has_all_offers.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(Error::Disconnected)
        }
    }
}
