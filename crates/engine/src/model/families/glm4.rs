//! GLM 4: norms before and after each part, and the two matrices of the feed-forward part in one.

use super::Family;
use crate::model::config::{Config, Norms};
use crate::model::rope::Sections;
use kernels::attention::Pairing;

pub(super) static FAMILY: Family = Family {
    name: "glm4",
    models: "GLM 4, 9B and 32B",
    read: |keys, family| {
        let mut config = Config::transformer(keys, family, Pairing::Adjacent)?;
        config.set_norms(Norms::AROUND);
        config.ropes = config.ropes.into_iter().map(|rope| rope.without_factors()).collect();
        let rope = &mut config.ropes[0];
        if rope.read_sections(keys, Sections::InTurn)? {
            rope.pairing = Pairing::Halves;
        }
        Ok(config)
    },
};
