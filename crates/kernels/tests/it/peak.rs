use crate::for_each_isa;
use kernels::peak;
use std::time::Duration;

#[test]
fn a_peak_is_a_positive_number_on_every_set() {
    for_each_isa("peak", |context| {
        let macs_per_s = peak::macs_per_s(context, Duration::ZERO);
        assert!(macs_per_s.is_finite() && macs_per_s > 0.0, "{context:?}: {macs_per_s}");
    });
}
