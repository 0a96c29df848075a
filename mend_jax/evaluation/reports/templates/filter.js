"use strict";
// A form with data-filters="ID" searches and filters the articles of the element with that id. An
// article is shown if it holds every word of the search, in any order, whatever the case and the
// accents, and if the line of its data-NAME that each <select name="NAME"> asks for is there.
for (const form of document.querySelectorAll("form[data-filters]")) {
  const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const list = document.getElementById(form.dataset.filters);
  const items = [...list.querySelectorAll("article")].map((node) => ({ node, text: plain(node.textContent) }));
  const selects = [...form.querySelectorAll("select")];
  const search = form.elements.search, output = form.querySelector("output");
  const apply = () => {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { node, text } of items) {
      const wanted = words.every((word) => text.includes(word))
        && selects.every((s) => !s.value || (node.dataset[s.name] ?? "").split("\n").includes(s.value));
      node.hidden = !wanted;
      shown += wanted;
    }
    for (const group of list.querySelectorAll("section")) {
      group.hidden = !group.querySelector("article:not([hidden])");
    }
    output.textContent = shown ? `${shown} of ${items.length} ${output.dataset.what}` : "Nothing matches.";
    form.querySelector("button").hidden = !words.length && selects.every((s) => !s.value);
  };
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply)); // once the fields are empty
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
