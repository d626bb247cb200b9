"use strict";
// Frames are created when they become visible and removed afterwards: a thousand at once would be slow.
const { frames } = JSON.parse(document.getElementById("data").textContent);
const sight = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (isIntersecting && !target.firstChild) {
      const frame = document.createElement("iframe");
      frame.setAttribute("sandbox", "");
      frame.title = target.previousElementSibling.textContent;
      frame.srcdoc = frames[Number(target.dataset.frame)];
      target.append(frame);
    } else if (!isIntersecting) target.replaceChildren();
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".frame").forEach((each) => sight.observe(each));
const near = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) {
    if (!isIntersecting) continue;
    target.src = document.querySelector(`#r${Number(target.dataset.of)} .made`).src;
    near.unobserve(target);
  }
}, { root: document.getElementById("sheet"), rootMargin: "300px" });
document.querySelectorAll("#sheet img").forEach((each) => near.observe(each));
document.getElementById("copy").addEventListener("click", async (event) => {
  const code = document.getElementById("command");
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  event.target.textContent = "Copied";
  setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
});
