// Opens the page with its own workflow, to collect the complaints of a page without this pack.

module.exports = async (page) => {
  await page.evaluate(async () => {
    await app.loadGraphData();
    await app.graphToPrompt();
  });
  await page.waitForTimeout(1000); // some of its requests are late
};
