//! Small templates against what Jinja2 3.1 renders, and hostile ones against the limits.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn input() -> ChatInput {
    let extra = json!({
        "l": [1, 2, 3], "d": {"b": 1, "a": {"x": [1, null, true, 2.5, "q'r"]}}, "s": " Hello <b> ",
        "f": 1.0, "big": 1e20, "u": u64::MAX, "deep": [[1, [2]], {"k": null}], "lines": "a\nb\n\nc\n",
        "words": ["b", "A", "c"],
    });
    let serde_json::Value::Object(extra) = extra else { unreachable!("the literal is an object") };
    ChatInput {
        messages: json!([{"role": "system", "content": "S"}, {"role": "user", "content": " U "}]),
        tools: None,
        add_generation_prompt: true,
        extra,
        now: CivilTime { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5 },
    }
}

fn render(source: &str) -> Result<String, TemplateError> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(&input())
}

fn check(source: &str, expected: &str) {
    match render(source) {
        Ok(text) => assert_eq!(text, expected, "{source}"),
        Err(error) => panic!("{source}: {error}"),
    }
}

#[test]
fn values_print_as_in_python() {
    check(
        "{{ true }} {{ none }} {{ f }} {{ big }} {{ 1e-7 }} {{ u }}",
        "True None 1.0 1e+20 1e-07 18446744073709551615",
    );
    check("{{ d }}", r#"{'b': 1, 'a': {'x': [1, None, True, 2.5, "q'r"]}}"#);
    check("{{ (1, 'a') }} {{ (1,) }} {{ [] }} {{ d.items()|list|first }}", "(1, 'a') (1,) [] ('b', 1)");
    check("{{ ['\\n\\\\', \"it's\", 'é'] }}", r#"['\n\\', "it's", 'é']"#);
    check(
        "{{ zz }}{{ zz|length }}{{ zz|default('D') }}{{ none|default('D') }}{{ ''|default('D', true) }}",
        "0DNoneD",
    );
    check("{{ 'x' ~ 1.0 ~ true ~ none }}", "x1.0TrueNone");
}

#[test]
fn json_is_pythons() {
    check("{{ d|tojson }}", r#"{"b": 1, "a": {"x": [1, null, true, 2.5, "q'r"]}}"#);
    check(
        "{{ deep|tojson(indent=2) }}",
        "[\n  [\n    1,\n    [\n      2\n    ]\n  ],\n  {\n    \"k\": null\n  }\n]",
    );
    check(
        "{{ d|tojson(separators=(',', ':'), sort_keys=true) }}",
        r#"{"a":{"x":[1,null,true,2.5,"q'r"]},"b":1}"#,
    );
    check("{{ '</a>é😀\\u0001'|tojson }}", r#""</a>é😀\u0001""#);
    check("{{ 'é😀'|tojson(ensure_ascii=true) }}", r#""\u00e9\ud83d\ude00""#);
    check("{{ []|tojson(indent=2) }}{{ {}|tojson }}{{ big|tojson }}", "[]{}1e+20");
    assert!(matches!(render("{{ zz|tojson }}"), Err(TemplateError::Failed { line: 1, .. })));
}

#[test]
fn methods_and_filters_are_pythons() {
    check("{{ s.strip().split(' ') }}{{ 'a,b,c'.rsplit(',', 1) }}", "['Hello', '<b>']['a,b', 'c']");
    check("{{ ' a  b c '.rsplit(none, 1) }}{{ 'a-b'.partition('-') }}", "['a  b', 'c']('a', '-', 'b')");
    check(
        "{{ 'ab'.center(5) }}|{{ 'a'.rjust(3, '.') }}|{{ '-7'.zfill(4) }}|{{ \"they're\".title() }}",
        "  ab |..a|-007|They'Re",
    );
    check("{{ 'abc'[1:] }}{{ l[::-1] }}{{ l[-1] }}{{ s[1] }}", "bc[3, 2, 1]3H");
    check(
        "{{ '3.7'|int }} {{ 'x'|int }} {{ 'x'|int(5) }} {{ 'ff'|int(base=16) }} {{ 'x'|float }}",
        "3 0 5 255 0.0",
    );
    check("{{ lines|indent(2) }}", "a\n  b\n\n  c\n");
    check("{{ lines|indent('> ', first=true) }}", "> a\n> b\n\n> c\n");
    check(
        "{{ words|sort|join }} {{ words|map('upper')|list }} {{ d|dictsort|first|first }}",
        "Abc ['B', 'A', 'C'] a",
    );
    check("{{ s|escape }}|{{ s|safe }}", " Hello &lt;b&gt; | Hello <b> ");
    check("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join }}", " U ");
}

#[test]
fn tests_are_pythons() {
    check(
        "{{ s is sequence }}{{ d is sequence }}{{ s is iterable }}{{ l is mapping }}{{ d is mapping }}",
        "TrueTrueTrueFalseTrue",
    );
    check(
        "{{ true is number }}{{ true is integer }}{{ zz is iterable }}{{ zz is string }}",
        "TrueFalseTrueFalse",
    );
}

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    check("  {% if true %}\n  a\n  {% endif %}\n  b\n", "  a\n  b");
    check("a {%- generation -%} {{ l[0] }} {%- endgeneration -%} b", "a1b");
    check(
        "{% generation %}{% set q = 5 %}{{ q }}{% endgeneration %}{{ q }}\n{% raw %}{% generation %}{% endraw %}",
        "5\n{% generation %}",
    );
    check(
        "{% for x in l %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "13",
    );
    check(
        "{% set ns = namespace(n=0) %}{% for x in l %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
        "6",
    );
    check(
        "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ tools }}{{ strftime_now('%d %b %Y') }}",
        "<s></s>TrueNone02 Jan 2026",
    );
}

#[test]
fn text_formats_by_percent() {
    check(
        "{{ '%s and %d' % ('a', 3) }}|{{ '%05.2f'%3.14159 }}|{{ \"%s\" % l[0] + 'x' }}",
        "a and 3|03.14|1x",
    );
    check(
        "{{ '%s!' % s.strip()|upper }}{{ 'x' ~ '%s' % (d.b) }}{{ '%s' % none }}{{ '%i%%' % 7 }}",
        "HELLO <B>!x1None7%",
    );
    check("{% set x = '%s' % l %}{{ x }}{{ '%s' % ('a',) }}{{ '%s' % big }}", "[1, 2, 3]a1e+20");
    check(
        "{% if 'a' %}b{% endif %}{{ 7 % 4 }}{{ '%' }}{# '%s' % x #}{% raw %}'%s' % 1{% endraw %}",
        "b3%'%s' % 1",
    );
}

#[test]
fn refusals_carry_the_templates_own_words() {
    let error = render("{% macro m() %}{{ raise_exception('roles ' ~ 'differ') }}{% endmacro %}\n{{ m() }}")
        .unwrap_err();
    assert_eq!(error.refusal(), Some("roles differ"));
    assert_eq!(error.to_string(), "the chat template refuses the conversation: roles differ");
    let error = render("\n{{ zz.y }}").unwrap_err();
    assert_eq!(error.refusal(), None);
    assert_eq!(error.to_string(), "the chat template fails at line 2: undefined value");
    let error = render("a\n{% if %}").unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error:?}");
}

#[test]
fn hostile_templates_end() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops), Err(TemplateError::OutOfFuel)));
    let output = "{% set x = 'a' * 1000000 %}{% for a in range(1000) %}{{ x }}{% endfor %}";
    assert!(matches!(render(output), Err(TemplateError::TooLong)));
    let recursion = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
    assert!(matches!(render(recursion), Err(TemplateError::Failed { .. })));
    let nesting = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(matches!(render(&nesting), Err(TemplateError::Syntax { .. })));
    let long = "x".repeat(SOURCE_BYTES_MAX + 1);
    assert!(matches!(render(&long), Err(TemplateError::SourceTooLong)));
    for width in [
        "{{ 'a'|indent(9999999999, true) }}",
        "{{ 'a'.center(99999999999) }}",
        "{{ [1]|tojson(indent=9999999999) }}",
    ] {
        assert!(render(width).is_ok_and(|text| text.len() < 20_000), "{width}");
    }
}

proptest! {
    #[test]
    fn no_template_panics(source in "(\\{\\{|\\}\\}|\\{%|%\\}|\\{#|#\\}|[-+]| if | for | in |x|set|raw|endraw|generation|endgeneration|'|\\(|\\)|\\||tojson|\\n|[ a-z0-9.%~é])*") {
        let _ = render(&source);
        prop_assert_eq!(source::adapt(&source).lines().count(), source.lines().count());
    }
}
