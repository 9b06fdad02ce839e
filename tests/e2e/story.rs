//! What a person does with the pages of `forge serve`, without a mouse: an experiment is made with batching and caching,
//! corrected, run, watched, read, run again, looked into, compared with another one, and a third is cancelled. The same
//! with any engine: the scripted one here, the shipped model in `tests/mistralrs`.

use serde_json::Value;

use crate::browser::{Browser, ENTER};

/// What the story is told with.
pub struct Story<'a> {
    /// Address of the server.
    pub home: &'a str,
    /// An engine of the project.
    pub model: &'a str,
    /// A data set, and samples of it.
    pub data_set: &'a str,
    pub samples: u32,
    /// A data set of which so many samples take long enough to be cancelled.
    pub long: (&'a str, u32),
}

struct Reader<'a> {
    browser: &'a Browser,
    story: &'a Story<'a>,
}

impl Reader<'_> {
    fn focus(&self, id: &str) {
        let script = format!("const e = document.getElementById('{id}'); e.focus(); e.select?.()");
        self.browser.run(&script);
    }

    fn fill(&self, id: &str, text: &str) {
        self.focus(id);
        self.browser.typed(text);
    }

    /// Chooses an option as the keyboard does, by its first letters.
    fn choose(&self, id: &str, option: &str) {
        self.focus(id);
        self.browser.typed(option);
        let chosen = format!("document.getElementById('{id}').value === '{option}'");
        self.browser.wait_until(&chosen);
    }

    /// Presses Enter on what a selector finds.
    fn enter(&self, selector: &str) {
        self.browser.run(&format!("document.querySelector(\"{selector}\").focus()"));
        self.browser.keys(&[ENTER]);
    }

    fn wait_for_title(&self, title: &str) {
        self.browser
            .wait_until(&format!("document.querySelector('h1')?.textContent === '{title}'"));
    }

    fn wait_for_status(&self, status: &str) {
        let status = format!("document.querySelector('.status')?.textContent === '{status}'");
        self.browser.wait_long(&status);
    }

    /// A fact of the page by its name.
    fn fact(&self, name: &str) -> String {
        let all = "[...document.querySelectorAll('dt')]";
        let found = format!("{all}.find(e => e.textContent === '{name}')");
        self.browser.wait_until(&found);
        self.browser.text(&format!("{found}.nextElementSibling.textContent"))
    }

    fn new_experiment(&self, name: &str, data_set: &str, samples: u32) {
        self.browser.open(&format!("{}/experiments/new", self.story.home));
        self.fill("name", name);
        self.fill("model_name", self.story.model);
        self.choose("dataset_name", data_set);
        self.fill("num_samples", &samples.to_string());
        self.fill("max_tokens", "64");
    }
}

/// Tells it, to the end.
pub fn whole_story(browser: &Browser, story: &Story<'_>) {
    let reader = Reader { browser, story };
    // Made, with batching and caching on; a wrong number is said at its field, and what was typed stays.
    reader.new_experiment("by keyboard", story.data_set, 900);
    for id in ["enable_batching", "enable_caching"] {
        reader.focus(id);
        browser.keys(&[" "]);
    }
    reader.fill("batch_size", "4");
    browser.keys(&[ENTER]);
    browser.wait_until("document.querySelector('[role=alert]')");
    assert_eq!(browser.text("document.getElementById('name').value"), "by keyboard");
    let invalid = "document.getElementById('num_samples').getAttribute('aria-invalid')";
    assert_eq!(browser.text(invalid), "true");
    assert_eq!(browser.value("document.getElementById('enable_caching').checked"), true);
    reader.fill("num_samples", &story.samples.to_string());
    reader.enter("button[value=run]");

    // Watched to its end, and its profile read.
    reader.wait_for_title("by keyboard");
    browser.wait_long(
        "document.getElementById('bar')?.value > 0 || document.querySelector('.completed')",
    );
    reader.wait_for_status("completed");
    let rate = |reader: &Reader<'_>| reader.fact("Cache Hit Rate");
    let share = |text: &str| text.trim_end_matches(" %").parse::<f64>().expect("a share");
    let first = share(&rate(&reader));
    let batches: u32 = reader.fact("Batches Processed").parse().expect("a number");
    assert!(batches > 0 && batches <= story.samples, "{batches} batches");
    let address = browser.text("location.href");

    // Run again, it finds what it was answered.
    browser.run("window.before = true");
    reader.enter(".actions .primary");
    browser.wait_long(
        "!window.before && document.querySelector('.status')?.textContent === 'completed'",
    );
    let second = share(&rate(&reader));
    assert!(second > first && second > 0.0, "{first} % of hits at first, {second} % then");

    // A sample is opened: question, transcript, and the way back.
    reader.enter("#samples td a");
    browser.wait_until("document.querySelectorAll('.turn').length > 1");
    reader.enter("main p a");
    browser.wait_until("location.hash === '#samples'");

    // Those that are wrong, by filter and keyboard.
    let total = "document.querySelector('.pages span').textContent";
    browser.wait_until(&format!("{total}.endsWith(' of {}')", story.samples));
    browser.run("document.querySelector('#samples select[name=correct]').focus()");
    browser.typed("no");
    reader.enter("#samples form button");
    browser.wait_until("location.search.includes('correct=')");

    // The same with another method, and both beside each other.
    browser.open(&address);
    let copy =
        "[...document.querySelectorAll('.actions a')].find(e => e.textContent === 'Copy').focus()";
    browser.run(copy);
    browser.keys(&[ENTER]);
    reader.wait_for_title("New experiment");
    reader.fill("name", "step by step");
    reader.choose("reasoning_method", "cot");
    reader.enter("button[value=run]");
    reader.wait_for_title("step by step");
    reader.wait_for_status("completed");
    let id = |address: &str| address.rsplit('/').next().unwrap_or_default().to_owned();
    let (a, b) = (id(&address), id(&browser.text("location.href")));
    browser.open(&format!("{}/compare?experiment_ids={a}&experiment_ids={b}", story.home));
    let said = browser.text("document.querySelector('main').textContent");
    assert!(said.contains("Who flipped") && said.contains("step by step"), "{said}");
    assert!(browser.value("document.querySelectorAll('.charts svg').length").as_u64() >= Some(2));

    // The runs that they were, chosen in the list of all, are compared stage by stage.
    browser.open(&format!("{}/runs", story.home));
    for row in 1..3 {
        let chosen = format!("document.querySelector('tbody tr:nth-child({row}) input')");
        browser.run(&format!("{chosen}.focus()"));
        browser.keys(&[" "]);
        browser.wait_until(&format!("{chosen}.checked"));
    }
    reader.enter("form[action='/runs/compare'] button");
    reader.wait_for_title("Compare runs");
    let said = browser.text("document.querySelector('main').textContent");
    assert!(
        said.contains("method: \"naive\" → \"cot\"") && said.contains("right in a, not in b"),
        "{said}"
    );

    // A long one is cancelled. It thinks step by step: on a fast engine, too, there is time for that.
    let (data_set, samples) = story.long;
    reader.new_experiment("too long", data_set, samples);
    reader.choose("reasoning_method", "cot");
    reader.fill("max_tokens", "160");
    reader.enter("button[value=run]");
    reader.wait_for_title("too long");
    browser.wait_long("document.getElementById('bar')?.value > 0");
    reader.enter("form[action$='/cancel'] button");
    reader.wait_for_status("cancelled");
    assert_eq!(browser.value("document.getElementById('live')"), Value::Null);
}
