#![allow(clippy::print_stdout)]
use engine::model::*;
use engine::*;
fn main() {
    let isa = std::env::var("ISA").map(|s| s.parse().unwrap()).unwrap_or(Isa::detect());
    for path in std::env::args().skip(1) {
        let p = std::path::Path::new(&path);
        let pool = Pool::new(2);
        let model = match Model::open(p, &OpenOptions { isa, ..Default::default() }, &pool, &mut |_| ()) {
            Ok(m) => m,
            Err(e) => {
                println!("{path}: {e}");
                continue;
            }
        };
        let dir = p.parent().unwrap();
        let toks = std::fs::read_to_string(dir.join("tokens.txt"))
            .unwrap_or("1 403 407 261 378 432 317 394 410 472".into());
        let toks: Vec<u32> = toks.split_whitespace().map(|t| t.parse().unwrap()).collect();
        let want: Vec<f32> = std::fs::read(p.with_extension("logits.f32"))
            .unwrap()
            .chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect();
        let mut cache = KvCache::new(&model, 128);
        let mut pages = vec![];
        cache.reserve(&mut pages, toks.len());
        let mut f = Forward::new(&model, &pool);
        let got = f.step(
            &[SequenceStep { tokens: &toks, position: 0, pages: &pages, outputs: toks.len() }],
            &mut cache,
        );
        let v = model.vocabulary();
        let (mut e, mut pw) = (0f64, 0f64);
        let mut agree = 0;
        for t in 0..toks.len() {
            let g = got.row(t);
            let w = &want[t * v..][..v];
            for (g, w) in g.iter().zip(w) {
                e += ((g - w) as f64).powi(2);
                pw += (*w as f64).powi(2);
            }
            let am = |x: &[f32]| x.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            agree += (am(g) == am(w)) as usize;
        }
        println!("{path}: nmse {:.2e} argmax {agree}/{}", e / pw, toks.len());
    }
}
