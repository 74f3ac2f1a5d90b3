//! Who is measured.

use engine::KvFormat;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Dunlin,
    Llama(Llama),
}

/// A setting of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Llama {
    /// Weights are rewritten into layouts of its own when they are loaded, which is its default.
    pub(super) repack: bool,
    /// `None`: as it chooses itself.
    pub(super) flash_attention: Option<bool>,
}

const fn llama(repack: bool, flash_attention: Option<bool>) -> Contender {
    Contender::Llama(Llama { repack, flash_attention })
}

impl Contender {
    /// With an empty context, where attention takes no time.
    pub(super) const USUAL: [Contender; 3] = [Contender::Dunlin, llama(true, None), llama(false, None)];

    const AT_DEPTH: [Contender; 5] = [
        Contender::Dunlin,
        llama(true, Some(true)),
        llama(false, Some(true)),
        llama(true, Some(false)),
        llama(false, Some(false)),
    ];

    /// Those that can attend to a long context in `kv`.
    pub(super) fn at_depth(kv: KvFormat) -> &'static [Contender] {
        // llama.cpp reads quantized values by flash attention only.
        if kv == KvFormat::Q8_0 { &Contender::AT_DEPTH[..3] } else { &Contender::AT_DEPTH }
    }

    pub(super) fn name(self) -> &'static str {
        self.names().0
    }

    /// In JSON.
    pub(super) fn key(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        let Contender::Llama(llama) = self else { return ("dunlin", "dunlin") };
        match (llama.repack, llama.flash_attention) {
            (true, None) => ("llama.cpp repack 1", "llama_cpp_repack_1"),
            (false, None) => ("llama.cpp repack 0", "llama_cpp_repack_0"),
            (true, Some(true)) => ("llama.cpp repack 1, fa on", "llama_cpp_repack_1_fa_on"),
            (false, Some(true)) => ("llama.cpp repack 0, fa on", "llama_cpp_repack_0_fa_on"),
            (true, Some(false)) => ("llama.cpp repack 1, fa off", "llama_cpp_repack_1_fa_off"),
            (false, Some(false)) => ("llama.cpp repack 0, fa off", "llama_cpp_repack_0_fa_off"),
        }
    }
}
