use nunatak::export::{Precision, llama};
use nunatak::pack::{Dealing, pack};
use nunatak::read::reader::*;
use nunatak::runtime::model_dir::ModelDir;
use nunatak::runtime::session::RuntimeOptions;
use nunatak::types::*;
use std::io::Write;

#[test]
fn gold() {
    let model = ModelDir::open("/tmp/nk/home/models/SmolLM2-135M-Instruct.int8".as_ref()).unwrap();
    let mut settings = ReaderSettings { grounded: std::env::var("G").is_ok(), ..ReaderSettings::default() };
    settings.template = std::env::var("T").unwrap_or("few-shot".into()).parse().unwrap();
    let mut reader = Reader::open(&model, settings, &RuntimeOptions::default()).unwrap();
    let mut out = std::fs::File::create(std::env::var("OUT").unwrap()).unwrap();
    for line in std::fs::read_to_string("/tmp/scratch/gold600.jsonl").unwrap().lines() {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        let p = Passage {
            key: "p".into(),
            title: v["title"].as_str().unwrap().into(),
            text: v["text"].as_str().unwrap().into(),
            source: SourceSpan::default(),
        };
        let q = v["q"].as_str().unwrap();
        let w = pack(
            &[(Hit { passage: PassageId(0), score: 0.0 }, p)],
            Dealing::Apart,
            reader.budget(q).unwrap(),
            &mut |t, x| reader.block(t, x),
        )
        .unwrap();
        let r = reader.read(q, &w.windows, &mut |_, _| {}).unwrap();
        writeln!(
            out,
            "{}",
            serde_json::json!({"p": r.answer, "a": v["a"], "s": r.score, "q": q, "e": !r.evidence.is_empty()})
        )
        .unwrap();
    }
}
