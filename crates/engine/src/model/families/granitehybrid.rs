//! Granite 4 hybrid: Mamba-2 in most layers, attention without positions in a few; dense or with experts.

use super::{Family, granite, mamba2};
use crate::model::config::{Config, Mixer};
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "granitehybrid",
    models: "Granite 4 H, 350M to 32B-A9B",
    read: |keys, family| {
        let mamba = mamba2::read(keys)?;
        let other = |_, kv_heads| (kv_heads == 0).then_some(Mixer::Mamba(mamba));
        let mut config = Config::hybrid(keys, family, Pairing::Adjacent, other)?;
        granite::scale(keys, &mut config)?;
        Ok(config)
    },
};
