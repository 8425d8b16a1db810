//! Whether the addresses go together, wherever they come from.

use super::{Config, ConfigProblem, Endpoint, Place};

/// Where the addresses stand; nothing for what has its default.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of `[listen] address`, one by one.
    pub listen: Vec<Place>,
    /// Of `[admin] address`.
    pub admin: Option<Place>,
}

impl Places {
    /// What can only be listened at once and is named twice.
    pub fn clashes(&self, config: &Config) -> Vec<ConfigProblem> {
        let addresses = &config.listen.address;
        let place = |number: usize| self.listen.get(number).cloned();
        let mut found = vec![];
        let mut problem = |place: Option<Place>, message: String| {
            found.push(ConfigProblem { place: place.unwrap_or(Place::File), message });
        };
        for (number, address) in addresses.iter().enumerate() {
            if is_fixed(address) && addresses[..number].contains(address) {
                problem(place(number), format!("[listen] address: {address} stands twice; leave one out"));
            }
        }
        let admin = Endpoint::Tcp(config.admin.address.clone());
        if let Some(number) = addresses.iter().position(|address| is_fixed(address) && *address == admin) {
            let message = format!("[admin] address: {admin} is where clients connect; write another port");
            problem(self.admin.clone().or_else(|| place(number)), message);
        }
        found
    }
}

/// Port 0 is another one each time.
fn is_fixed(address: &Endpoint) -> bool {
    !matches!(address, Endpoint::Tcp(address) if address.port == 0)
}
