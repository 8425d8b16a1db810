//! The command line's overrides: they win over the environment and the file.

use super::addresses::Places;
use super::secret::shown;
use super::{Config, ConfigProblem, Endpoint, HostPort, Place, Secret, UpstreamUrl};

/// Values given on the command line, as written.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--listen`, all of them; empty: not given.
    pub listen: Vec<String>,
    /// `--upstream`; may hold a password.
    pub upstream: Option<Secret>,
    /// `--admin`
    pub admin: Option<String>,
}

impl Flags {
    /// Puts the values into `config`; wrong ones become problems.
    pub(super) fn apply(&self, config: &mut Config, places: &mut Places, problems: &mut Vec<ConfigProblem>) {
        let mut wrong = |flag, message| problems.push(ConfigProblem { place: Place::Flag(flag), message });
        let mut listen = Vec::new();
        for text in &self.listen {
            match Endpoint::parse(text) {
                Ok(address) => listen.push(address),
                Err(_) if text.contains(',') => {
                    let message =
                        format!("{} is no address; give --listen once for each address", shown(text));
                    wrong("--listen", message);
                }
                Err(message) => wrong("--listen", message),
            }
        }
        if !listen.is_empty() {
            places.listen = listen.iter().map(|_| Place::Flag("--listen")).collect();
            config.listen.address = listen;
        }
        if let Some(text) = &self.upstream {
            match UpstreamUrl::parse(text.expose()) {
                Ok(url) => config.upstream.url = url,
                Err(message) => wrong("--upstream", message),
            }
        }
        if let Some(text) = &self.admin {
            match HostPort::parse(text) {
                Ok(address) => {
                    places.admin = Some(Place::Flag("--admin"));
                    config.admin.address = address;
                }
                Err(message) => wrong("--admin", message),
            }
        }
    }
}
