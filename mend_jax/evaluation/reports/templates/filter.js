"use strict";
// A form with data-filters="ID" searches and filters the articles of the element with that id. An
// article is visible if it contains every word of the search, in any order, ignoring case and
// accents, and if each <select name="NAME"> has the value of one line of its data-NAME.
for (const form of document.querySelectorAll("form[data-filters]")) {
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const list = document.getElementById(form.dataset.filters);
  const items = [...list.querySelectorAll("article")].map((node) => ({ node, text: plain(node.textContent) }));
  const selects = [...form.querySelectorAll("select")];
  const search = form.elements.search, output = form.querySelector("output");
  const apply = () => {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const { node, text } of items) {
      const matches = words.every((word) => text.includes(word))
        && selects.every((s) => !s.value || (node.dataset[s.name] ?? "").split("\n").includes(s.value));
      node.hidden = !matches;
      visible += matches;
    }
    for (const group of list.querySelectorAll("section")) {
      group.hidden = !group.querySelector("article:not([hidden])");
    }
    output.textContent = visible ? `${visible} of ${items.length} ${output.dataset.what}` : "Nothing matches.";
    form.querySelector("button").hidden = !words.length && selects.every((s) => !s.value);
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply)); // once the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
