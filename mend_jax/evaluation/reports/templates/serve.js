"use strict";
// A form with data-post="/ACTION" sends its fields, and those of data-fields, to the server; the
// answer, which the server has escaped, takes the place of what is in the element data-into.
const [status, alert] = ["status", "alert"].map((id) => document.getElementById(id));
const say = (where, text) => { where.textContent = text; where.hidden = !text; };
const enable = (on) => document.querySelectorAll("button").forEach((button) => { button.disabled = !on; });

async function send(form) {
  const fields = { ...Object.fromEntries(new FormData(form)), ...JSON.parse(form.dataset.fields ?? "{}") };
  const answer = await fetch(form.dataset.post, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Token": document.body.dataset.token },
    body: JSON.stringify(fields),
  });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text);
  const into = document.getElementById(form.dataset.into);
  into.innerHTML = text;
  if (into.tabIndex === -1 && form.dataset.post === "/propose") {
    into.focus({ preventScroll: true });
    into.scrollIntoView({ block: "start", behavior: "smooth" });
  }
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  event.preventDefault();
  if (!form.dataset.post) return;
  const began = Date.now();
  const tell = () => say(status, `Working … ${Math.round((Date.now() - began) / 1000)} s`);
  const clock = setInterval(tell, 500);
  say(alert, "");
  tell();
  enable(false);
  try {
    await send(form);
  } catch (error) {
    say(alert, error instanceof TypeError ? "The program behind this page does not answer: is it still running?" : error.message);
    alert.scrollIntoView({ block: "nearest" });
  } finally {
    clearInterval(clock);
    say(status, "");
    enable(true);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form?.requestSubmit();
});
