//! What whoever writes a script is told.

use super::*;

#[test]
fn a_script_that_cannot_be_used_says_where_and_why() {
    for (text, said) in [
        ("\n  let = ;", "route.js:2:9: SyntaxError: unexpected token in expression: ';'"),
        ("let a = 1;\n\nfoo();", "route.js:3:1: ReferenceError: foo is not defined"),
        (
            "import x from 'fs';",
            "route.js:1:8: SyntaxError: a script has no modules: nothing can be imported",
        ),
        (
            "let a = 1; import { x } from 'fs';",
            "route.js:1:19: SyntaxError: a script has no modules: nothing can be imported",
        ),
        (
            "\nexport default 1;",
            "route.js:2:1: SyntaxError: a script has no modules: nothing can be imported",
        ),
        (
            "const fs = await import('fs');",
            "route.js:1:18: SyntaxError: a script has no modules: nothing can be imported",
        ),
        (
            "require('fs')",
            "route.js:1:1: ReferenceError: require is not defined (a script has no modules: nothing can be imported)",
        ),
        // These are about something else.
        ("let important = ;", "route.js:1:17: SyntaxError: unexpected token in expression: ';'"),
        ("'äöü'; foo();", "route.js:1:8: ReferenceError: foo is not defined"),
        ("'äöü';\n'€'; let = ;", "route.js:2:12: SyntaxError: unexpected token in expression: ';'"),
        (
            "pools.nope.workers.length",
            "route.js:1:1: TypeError: cannot read property 'workers' of undefined (pools: app, gold)",
        ),
        (
            "pools.app.workers[9].name",
            "route.js:1:1: TypeError: cannot read property 'name' of undefined",
        ),
        (
            "let a = 1;",
            "route.js: the script sets no handler: `onconnection = ({ connection }) => …`",
        ),
        ("setTimeout(() => 1, 1)", "route.js:1:1: ReferenceError: setTimeout is not defined"),
        ("throw 'x'", "route.js: threw x"),
    ] {
        assert_eq!(build(text).unwrap_err().to_string(), said);
    }
}

#[test]
fn a_rejection_without_a_how_is_told_what_it_takes() {
    let mut engine = handler("connection.reject()");
    decide(&mut engine);
    let said = "RangeError: reject() takes a status from 400 to 599, \"reset\" or \"close\"";
    assert_eq!(engine.last_failure().unwrap().message, said);
}

#[test]
fn whatever_is_logged_is_no_reason_to_fail() {
    let mut engine = handler(
        r#"console.log(Symbol(), Symbol("x"), "\ud800", 1n, undefined, [Symbol("x")], () => 1, Object.create(null));
           connection.reject(418)"#,
    );
    assert_eq!(decide(&mut engine), Outcome::Reject(Refusal::Status(418)));
}
