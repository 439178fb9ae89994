//! The parameters of a Query call, taken one by one, so that what is left over is known to be unknown.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use super::super::ApiError;

/// Names and values as they came.
#[derive(Debug)]
pub(super) struct Params(BTreeMap<String, String>);

impl Params {
    /// Reads a form.
    pub fn read(body: &[u8]) -> Self {
        Params(form_urlencoded::parse(body).into_owned().collect())
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Error: it is missing.
    pub fn required(&mut self, name: &str) -> Result<String, ApiError> {
        self.text(name)
            .ok_or_else(|| ApiError::new("MissingParameter", format!("The request must contain the parameter {name}")))
    }

    /// Error: it is there and not of this type.
    pub fn parsed<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.text(name).map(|text| parse(name, &text)).transpose()
    }

    /// `Name.1`, `Name.2`, …, by number.
    pub fn list(&mut self, name: &str) -> Vec<String> {
        self.numbers(name).iter().filter_map(|number| self.text(&format!("{name}.{number}"))).collect()
    }

    pub fn parsed_list<T: FromStr>(&mut self, name: &str) -> Result<Vec<T>, ApiError> {
        self.list(name).iter().map(|text| parse(name, text)).collect()
    }

    /// `Filter.1.Name` with its `Filter.1.Value.1`, and so on.
    pub fn filters(&mut self) -> Vec<(String, Vec<String>)> {
        let numbers = self.numbers("Filter");
        let filter = |number: u32| {
            let name = self.text(&format!("Filter.{number}.Name"))?;
            Some((name, self.list(&format!("Filter.{number}.Value"))))
        };
        numbers.into_iter().filter_map(filter).collect()
    }

    /// `Tag.1.Key` with its `Tag.1.Value`, and so on, below a prefix.
    pub fn tags(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let name = format!("{prefix}Tag");
        let numbers = self.numbers(&name);
        let tag = |number: u32| {
            let key = self.text(&format!("{name}.{number}.Key"))?;
            Some((key, self.text(&format!("{name}.{number}.Value")).unwrap_or_default()))
        };
        numbers.into_iter().filter_map(tag).collect()
    }

    /// The tags of one kind of resource. Error: tags of another kind.
    pub fn tag_specification(&mut self, kind: &str) -> Result<BTreeMap<String, String>, ApiError> {
        let mut tags = BTreeMap::new();
        for number in self.numbers("TagSpecification") {
            let named = self.required(&format!("TagSpecification.{number}.ResourceType"))?;
            if named != kind {
                let message = format!("'{named}' is not a valid taggable resource type for this operation.");
                return Err(ApiError::new("InvalidParameterValue", message));
            }
            tags.extend(self.tags(&format!("TagSpecification.{number}.")));
        }
        Ok(tags)
    }

    /// Error: something is left that nobody asked for.
    pub fn finish(&self) -> Result<(), ApiError> {
        match self.0.keys().find(|name| *name != "Version") {
            Some(name) => {
                Err(ApiError::new("UnknownParameter", format!("The parameter {name} is not known to the model")))
            }
            None => Ok(()),
        }
    }

    /// The numbers that follow a name, ascending.
    fn numbers(&self, name: &str) -> BTreeSet<u32> {
        let below = self.0.keys().filter_map(|key| key.strip_prefix(name)?.strip_prefix('.'));
        below.filter_map(|rest| rest.split('.').next()?.parse().ok()).collect()
    }
}

fn parse<T: FromStr>(name: &str, text: &str) -> Result<T, ApiError> {
    let wrong = |_| ApiError::new("InvalidParameterValue", format!("Invalid value '{text}' for {name}"));
    text.parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_by_number_and_nothing_is_left() {
        let mut params = Params::read(
            b"Version=2016-11-15&A.10=j&A.2=b&A.1=a&Filter.1.Name=tag%3Ax&Filter.1.Value.1=1&Filter.1.Value.2=2\
              &TagSpecification.1.ResourceType=network-interface&TagSpecification.1.Tag.1.Key=k+y\
              &TagSpecification.1.Tag.1.Value=%C3%A9&N=x",
        );
        assert_eq!(params.list("A"), ["a", "b", "j"]);
        assert_eq!(params.filters(), [("tag:x".to_owned(), vec!["1".to_owned(), "2".to_owned()])]);
        let tags = params.tag_specification("network-interface").unwrap();
        assert_eq!(tags, BTreeMap::from([("k y".to_owned(), "é".to_owned())]));
        assert_eq!(params.parsed::<u32>("N").unwrap_err().code, "InvalidParameterValue");
        assert_eq!(params.required("M").unwrap_err().code, "MissingParameter");
        params.finish().unwrap();
        assert_eq!(Params::read(b"Colour=blue").finish().unwrap_err().code, "UnknownParameter");
    }
}
