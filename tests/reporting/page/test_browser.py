"""The page in headless Chromium: no complaint, no request, and every control does what it says."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reparam.reporting.page.page import render_page
from reparam.reporting.page.records import SiteLoss
from tests.reporting.page.facts import block, page, run, tree

pytest.importorskip("selenium", reason="selenium drives the browser; pip install 'reparam[dev]'")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here; apt-get install chromium chromium-driver"),
]
LAPTOP, PHONE = (1280, 800), (360, 740)
LONG = "a_name_without_any_place_to_break_it_" * 6
#: Given to the page's own code by the browser, not by it.
NOISE = ("data:", "file:", "about:")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


Open = Callable[..., webdriver.Chrome]


@pytest.fixture
def open_page(browser: webdriver.Chrome, tmp_path: Path) -> Open:
    def open_(*runs: Any, size: tuple[int, int] = LAPTOP, dark: bool = False) -> webdriver.Chrome:
        (tmp_path / "report.html").write_text(render_page(page(*runs)), encoding="utf-8")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(f"file://{tmp_path}/report.html")
        browser.execute_script("try { localStorage.clear() } catch {}")
        browser.refresh()
        return browser

    return open_


def one(driver: webdriver.Chrome, selector: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, selector)


def shown(driver: webdriver.Chrome, selector: str) -> list[WebElement]:
    return [element for element in driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]


def requests(driver: webdriver.Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(NOISE)]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_it_opens_without_complaint_or_request_and_fits(
    open_page: Open, tmp_path: Path, size: tuple[int, int], dark: bool
) -> None:
    driver = open_page(size=size, dark=dark)
    assert driver.get_log("browser") == []
    assert requests(driver) == []
    wide, window = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert (wide, window) == (size[0], size[0])
    assert driver.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_two_runs_and_long_names_fit_on_a_phone(open_page: Open) -> None:
    sites = tuple(SiteLoss(path=f"{LONG}.{i}", kind="mlp", operator="moe_mlp", top1_drop=i, kl=0.1) for i in range(3))
    long = run(name=LONG, model=LONG, folder=f"/{LONG}", tree=tree(block(LONG)), sensitivity=sites, evaluation=None)
    driver = open_page(long, run(name=f"{LONG}b"), size=PHONE)
    assert driver.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    assert driver.get_log("browser") == []


def test_the_theme_is_the_systems_until_the_button_is_pressed_and_then_stays(open_page: Open) -> None:
    driver = open_page(dark=True)
    background = "return getComputedStyle(document.body).backgroundColor"
    dark = driver.execute_script(background)
    assert one(driver, "#theme").get_attribute("aria-pressed") == "true"
    one(driver, "#theme").click()
    light = driver.execute_script(background)
    assert light != dark
    assert one(driver, "#theme").get_attribute("aria-pressed") == "false"
    driver.refresh()
    assert driver.execute_script(background) == light


def test_choosing_a_table_changes_the_energy(open_page: Open) -> None:
    driver = open_page()
    before = [element.text for element in shown(driver, "[data-energy]")]
    Select(one(driver, "[data-shows=energy]")).select_by_value("shiftaddnet-fpga")
    after = shown(driver, "[data-energy]")
    assert {element.get_attribute("data-energy") for element in after} == {"shiftaddnet-fpga"}
    assert len(after) == len(before)
    assert [element.text for element in after] != before


def test_choosing_a_measure_changes_the_waterfall(open_page: Open) -> None:
    driver = open_page()
    Select(one(driver, "[data-shows=measure]")).select_by_value("mul")
    (found,) = shown(driver, "[data-measure]")
    assert "Counted: multiplications" in found.text
    assert [row.text.split("\n")[0] for row in shown(driver, "#cost .total")] == ["dense", "converted"]


def test_the_two_choices_of_a_table_follow_each_other_and_a_count_stays(open_page: Open) -> None:
    driver = open_page()
    energy, measure = (Select(one(driver, f"[data-shows={name}]")) for name in ("energy", "measure"))
    energy.select_by_value("shiftaddnet-fpga")
    assert measure.first_selected_option.get_attribute("value") == "shiftaddnet-fpga"
    measure.select_by_value("ecoformer")
    assert {element.get_attribute("data-energy") for element in shown(driver, "[data-energy]")} == {"ecoformer"}
    measure.select_by_value("mul")
    energy.select_by_value("horowitz-45nm")
    (found,) = shown(driver, "[data-measure]")
    assert found.get_attribute("data-measure") == "mul"


@pytest.mark.parametrize("size", [PHONE, (1000, 800), LAPTOP], ids=["phone", "window", "laptop"])
def test_large_figures_stay_on_one_line(open_page: Open, size: tuple[int, int]) -> None:
    driver = open_page(run(), run(name="other"), size=size)
    lines = driver.execute_script(
        "return [...document.querySelectorAll('.tile:not([hidden]) b')]"
        ".map((b) => b.getBoundingClientRect().height / parseFloat(getComputedStyle(b).lineHeight))"
    )
    assert lines
    assert all(height < 1.5 for height in lines)


def test_the_layer_slider_answers_to_the_keyboard(open_page: Open) -> None:
    driver = open_page()
    assert [output.text for output in shown(driver, "#routing output")] == ["blocks.0.mlp 33 % multiplied"]
    one(driver, "[data-shows=layer0]").send_keys(Keys.ARROW_RIGHT)
    assert [output.text for output in shown(driver, "#routing output")] == ["blocks.1.mlp 58 % multiplied"]
    assert [svg.get_attribute("data-layer0") for svg in shown(driver, ".map svg")] == ["1", "1"]


def test_the_overlay_can_be_made_weaker(open_page: Open) -> None:
    driver = open_page()
    one(driver, "[data-strength]").send_keys(Keys.HOME)
    assert one(driver, ".map svg").value_of_css_property("opacity") == "0"


def test_the_tree_folds_and_opens(open_page: Open) -> None:
    driver = open_page()
    folds = driver.find_elements(By.CSS_SELECTOR, ".tree details")
    for name, is_open in (("open", True), ("close", False), ("open", True)):
        one(driver, f"[data-fold={name}]").click()
        assert {fold.get_attribute("open") is not None for fold in folds} == {is_open}
    one(driver, ".tree summary").send_keys(Keys.ENTER)
    assert folds[0].get_attribute("open") is None


def test_a_curve_tells_its_values_to_keys_and_pointer(open_page: Open) -> None:
    driver = open_page()
    plot = one(driver, "#training .plot")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    plot.send_keys(Keys.ARROW_RIGHT)
    plot.send_keys(Keys.ARROW_RIGHT)
    tip = one(driver, "#tip")
    assert tip.is_displayed()
    assert tip.text.splitlines()[0] == "epoch 1"
    assert "train, all terms 2" in tip.text
    webdriver.ActionChains(driver).move_to_element_with_offset(plot, plot.size["width"] // 2 - 2, 0).perform()
    assert tip.text.splitlines()[0] == "epoch 2"
    assert "evaluation 0.5" in tip.text
    webdriver.ActionChains(driver).move_to_element(one(driver, "h1")).perform()
    assert not tip.is_displayed()


def test_a_bar_tells_its_figure(open_page: Open) -> None:
    driver = open_page()
    bar = one(driver, "#exponents .wide [data-tip]")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", bar)
    webdriver.ActionChains(driver).move_to_element(bar).perform()
    assert one(driver, "#tip").text == "±2⁻³: 9.1 % (1)"
