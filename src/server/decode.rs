//! Request bodies as Go's decoder takes them (`spec: control` §1.3): the first JSON value counts,
//! names match in any case, null is absent, and errors are in its words.

use serde_json::Value;
use serde_json::error::Category;

use super::api::{PathRequest, RegisterRequest, SyncRequest};

/// The fields of a request. Taking one checks its type.
#[derive(Debug)]
struct Fields {
    /// Name of the request, for messages.
    of: &'static str,
    object: serde_json::Map<String, Value>,
}

impl Fields {
    fn read(of: &'static str, body: &[u8]) -> Result<Self, String> {
        let first = serde_json::Deserializer::from_slice(body).into_iter::<Value>().next();
        let object = match first {
            None => return Err("EOF".to_owned()),
            Some(Err(err)) => return Err(syntax_error(&err, body)),
            Some(Ok(Value::Null)) => serde_json::Map::new(),
            Some(Ok(Value::Object(object))) => object,
            Some(Ok(other)) => {
                return Err(format!("json: cannot unmarshal {} into Go value of type litestream.{of}", kind(&other)));
            }
        };
        Ok(Self { of, object })
    }

    /// The last field of that name in any case, if it is not null.
    fn find(&self, name: &str) -> Option<&Value> {
        let same = self.object.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value).filter(|value| !value.is_null())
    }

    fn mismatch(&self, name: &str, value: &Value, wanted: &str) -> String {
        let what = match value {
            Value::Number(n) if wanted == "int" => format!("number {n}"),
            other => kind(other).to_owned(),
        };
        format!("json: cannot unmarshal {what} into Go struct field {}.{name} of type {wanted}", self.of)
    }

    fn text(&self, name: &str) -> Result<String, String> {
        match self.find(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.mismatch(name, other, "string")),
        }
    }

    fn int(&self, name: &str) -> Result<i64, String> {
        match self.find(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| self.mismatch(name, value, "int")),
        }
    }

    fn bool(&self, name: &str) -> Result<bool, String> {
        match self.find(name) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.mismatch(name, value, "bool")),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn syntax_error(err: &serde_json::Error, body: &[u8]) -> String {
    if err.classify() == Category::Eof {
        return "unexpected EOF".to_owned();
    }
    let line = body.split(|b| *b == b'\n').nth(err.line().saturating_sub(1)).unwrap_or_default();
    let rest = line.get(err.column().saturating_sub(1)..).unwrap_or_default();
    let found = String::from_utf8_lossy(&rest[..rest.len().min(4)]);
    match found.chars().next() {
        Some(c) => format!("invalid character '{}' looking for beginning of value", c.escape_default()),
        None => err.to_string(),
    }
}

/// The requests that a body can hold.
pub trait FromBody: Sized {
    /// Reads the request that Go calls `of` from the first JSON value of `body`.
    ///
    /// # Errors
    /// What Go's decoder would say.
    fn from_body(of: &'static str, body: &[u8]) -> Result<Self, String>;
}

impl FromBody for PathRequest {
    fn from_body(of: &'static str, body: &[u8]) -> Result<Self, String> {
        let fields = Fields::read(of, body)?;
        Ok(Self { path: fields.text("path")?, timeout: fields.int("timeout")? })
    }
}

impl FromBody for SyncRequest {
    fn from_body(of: &'static str, body: &[u8]) -> Result<Self, String> {
        let fields = Fields::read(of, body)?;
        Ok(Self { path: fields.text("path")?, wait: fields.bool("wait")?, timeout: fields.int("timeout")? })
    }
}

impl FromBody for RegisterRequest {
    fn from_body(of: &'static str, body: &[u8]) -> Result<Self, String> {
        let fields = Fields::read(of, body)?;
        Ok(Self { path: fields.text("path")?, replica_url: fields.text("replica_url")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(body: &str) -> Result<SyncRequest, String> {
        SyncRequest::from_body("SyncRequest", body.as_bytes())
    }

    #[test]
    fn the_first_value_counts_and_names_match_in_any_case() {
        let want = SyncRequest { path: "a".to_owned(), wait: true, timeout: 5 };
        for body in [
            r#"{"path":"a","wait":true,"timeout":5}"#,
            r#"{"PATH":"a","Wait":true,"timeOut":5,"x":[1]}junk"#,
            " {\"path\":\"b\",\"path\":\"a\",\"wait\":true,\"timeout\":5} {}",
        ] {
            assert_eq!(sync(body).as_ref(), Ok(&want), "{body}");
        }
        for body in ["null", "{}", r#"{"path":null,"wait":null,"timeout":null}"#] {
            assert_eq!(sync(body), Ok(SyncRequest::default()), "{body}");
        }
    }

    #[test]
    fn errors_are_in_the_words_of_go() {
        for (body, want) in [
            ("", "EOF"),
            ("  ", "EOF"),
            ("xx", "invalid character 'x' looking for beginning of value"),
            (r#"{"path":"#, "unexpected EOF"),
            ("[]", "json: cannot unmarshal array into Go value of type litestream.SyncRequest"),
            (r#"{"path":1}"#, "json: cannot unmarshal number into Go struct field SyncRequest.path of type string"),
            (
                r#"{"timeout":"5"}"#,
                "json: cannot unmarshal string into Go struct field SyncRequest.timeout of type int",
            ),
            (
                r#"{"timeout":1.5}"#,
                "json: cannot unmarshal number 1.5 into Go struct field SyncRequest.timeout of type int",
            ),
            (r#"{"wait":1}"#, "json: cannot unmarshal number into Go struct field SyncRequest.wait of type bool"),
        ] {
            assert_eq!(sync(body), Err(want.to_owned()), "{body}");
        }
    }

    #[test]
    fn no_body_is_too_strange() {
        let deep = "[".repeat(100_000);
        assert!(sync(&deep).is_err());
        assert!(SyncRequest::from_body("SyncRequest", b"\xff\xfe").is_err());
        assert!(sync("{\"a\":\n\n\u{e9}}").is_err());
    }
}
