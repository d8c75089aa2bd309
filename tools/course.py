"""Runs, tests and maintains the course: what the Makefile's targets do, with the standard library alone.

    python tools/course.py COMMAND [LESSON]

Commands:
    run       set up if need be, run all lessons, write them to _run/ and end with a table       (make course)
    test      set up if need be, run pytest and every notebook                                   (make test)
    setup     make .venv, or bring it up to date                                                 (make setup)
    lesson N  run one lesson, by its number                                                      (make lesson N=04)
    store [N] run all lessons or one, and keep their outputs in nbs/                             (make store N=04)
    lab       open JupyterLab                                                                    (make lab)
    export    write exp/ from the notebooks, and clean their metadata                            (make export)
    results   write the README's tables and picture from the last run                            (make results)
    bench     run the benchmarks                                                                 (make bench)
    clean     remove what runs and builds left behind                                            (make clean)
    help      print this

With --here, the interpreter that runs this file is used as it is (a conda environment, say) and nothing is
installed.
"""
import base64, configparser, hashlib, json, os, re, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, RUN, VENV = ROOT/'nbs', ROOT/'_run', ROOT/'.venv'
PYTHONS = (3, 11), (3, 14)
HERE = '--here' in sys.argv

def say(*parts): print(*parts, flush=True)
def stop(message): sys.exit(f'course: {message}')

# ---- set-up

def python():
    "The interpreter of the course's environment."
    if HERE: return sys.executable
    return str(VENV/('Scripts/python.exe' if os.name == 'nt' else 'bin/python'))

def script(name):
    "A command that the environment's packages installed, as the start of a command line."
    return [str(Path(python()).parent/(name + ('.exe' if os.name == 'nt' else '')))]

def answers(*command):
    "Does this command run and exit with 0?"
    try: return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError: return False

def fingerprint():
    "What the environment is made from; another fingerprint makes it stale."
    parts = [sys.version, str(ROOT),
             *((ROOT/name).read_text(encoding='utf-8') for name in ('pyproject.toml', 'constraints.txt'))]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()

def torch_index():
    "Another index for torch: EXP_TORCH_INDEX, or torch_index in settings.ini."
    ini = configparser.ConfigParser(interpolation=None)
    raw = (ROOT/'settings.ini').read_bytes() if (ROOT/'settings.ini').is_file() else b''
    ini.read_string(raw.decode(json.detect_encoding(raw)))   # UTF-8, or what Windows' editors make of it
    return os.environ.get('EXP_TORCH_INDEX') or ini.get('exp', 'torch_index', fallback='').strip()

def announce_download():
    "Say so before a torch is fetched that brings CUDA's libraries along."
    report = subprocess.run([python(), '-m', 'pip', 'install', '-q', '--dry-run', '--no-deps', '--report',
                             '-', '-c', str(ROOT/'constraints.txt'), 'torch'],
                            capture_output=True, text=True)
    try: torch = json.loads(report.stdout)['install'][0]['metadata']
    except (ValueError, LookupError): return   # torch is there already, or pip will say itself what is wrong
    if (sys.platform == 'linux' and '+cpu' not in torch['version']
        and any(r.startswith(('nvidia', 'cuda')) for r in torch.get('requires_dist', []))):
        say('  PyTorch comes with CUDA here: a download of several gigabytes. For the CPU build, stop '
            '(Ctrl-C) and set EXP_TORCH_INDEX;\n'
            '  README.md says how.')

def pip_install(*what):
    quiet = [] if sys.stdout.isatty() else ['-q', '--progress-bar', 'off']
    if subprocess.run([python(), '-m', 'pip', 'install', '--disable-pip-version-check', *quiet, *what],
                      cwd=ROOT).returncode:
        stop('the installation failed; pip says why above. Run the same command again to go on')

def setup():
    "Make .venv if there is none, bring it up to date if it is stale, and return at once if it is neither."
    if HERE: return
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        stop(f'Python {sys.version.split()[0]} runs this; the course needs 3.{PYTHONS[0][1]} to '
             f'3.{PYTHONS[1][1]}, e.g. make course PYTHON=python3.12')
    stamp, wanted = VENV/'course-stamp', fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted and answers(python(), '-c', 'import torch, exp'):
        return
    start = time.time()
    same = (answers(python(), '-c', f'import sys; sys.exit(sys.version != {sys.version!r})')
            and answers(python(), '-m', 'pip', '--version'))
    if not same:
        say(f'setting up {VENV.name}/ with Python {sys.version.split()[0]}')
        if subprocess.run([sys.executable, '-m', 'venv', '--clear', str(VENV)]).returncode:
            stop("Python's venv is missing or failed (on Debian and Ubuntu: apt install python3-venv)")
    else: say(f'bringing {VENV.name}/ up to date')
    constraints = ['-c', str(ROOT/'constraints.txt')]
    if index := torch_index(): pip_install('--index-url', index, *constraints, 'torch')
    else: announce_download()
    say('  installing the packages that constraints.txt names; minutes, the first time')
    pip_install(*constraints, '-e', '.[dev]')
    stamp.write_text(wanted)
    say(f'  set up in {time.time() - start:.0f} s')

# ---- running lessons

def lessons(): return sorted(p for p in NBS.glob('[0-9][0-9]*_*.ipynb') if not p.name.startswith('99_'))

def find_lesson(number):
    found = [p for p in lessons()
             if p.name.split('_')[0] == (number.zfill(2) if number.isdigit() else number)]
    if not found:
        stop(f'there is no lesson {number}; there are {", ".join(p.name.split("_")[0] for p in lessons())}')
    return found[0]

def environment(threads):
    "The environment variables for a notebook: `threads` for torch, None for all of them."
    env = dict(os.environ, PYTHONUTF8='1', PYDEVD_DISABLE_FILE_VALIDATION='1')
    # else the C library hands large tensors back to the system, which clears their pages anew: half the time
    # of a training step
    if sys.platform == 'linux':
        for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'): env.setdefault(name, str(2**32))
    if threads: env.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    return env

def run_lesson(path, threads):
    "Run one lesson into _run/. Answers its name, seconds, reports and, if it failed, the failure."
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder)/'report.jsonl'
        start = time.time()
        done = subprocess.run([python(), __file__, '_execute', str(path), str(RUN/path.name)],
                              env={**environment(threads), 'EXP_REPORT': str(reports)},
                              capture_output=True, text=True, encoding='utf-8', errors='replace')
        seconds = time.time() - start
        lines = reports.read_text(encoding='utf-8').splitlines() if reports.exists() else []
    failure = (None if done.returncode == 0 else done.stdout.strip() or done.stderr.strip()
               or f'it ended with exit status {done.returncode}')
    return dict(lesson=path.stem, seconds=round(seconds, 1), reports=[json.loads(l) for l in lines],
                failure=failure)

def execute(source, target):
    """Run a notebook in a kernel and write it with its outputs, also when a cell fails (in the environment's
    interpreter)."""
    import nbclient, nbformat
    nb = nbformat.read(source, as_version=4)
    client = nbclient.NotebookClient(nb, timeout=3600, kernel_name='python3', store_widget_state=False,
                                     resources={'metadata': {'path': str(Path(source).parent)}})
    failure = None
    try: client.execute()
    except (nbclient.exceptions.CellExecutionError, nbclient.exceptions.CellTimeoutError,
            nbclient.exceptions.DeadKernelError) as e:
        failure = e
    Path(target).parent.mkdir(exist_ok=True)
    nbformat.write(nb, target + '.part')
    os.replace(target + '.part', target)
    if failure:
        print(describe(nb, failure))
        sys.exit(1)

def describe(nb, failure):
    "The cell that failed, its source and its traceback, as text."
    for i, cell in enumerate(nb.cells):
        for o in cell.get('outputs', []):
            if o.output_type == 'error':
                trace = re.sub(r'\x1b\[[0-9;]*m', '', '\n'.join(o.traceback))
                return f'cell {i + 1} failed: {o.ename}: {o.evalue}\n\n{cell.source}\n\n{trace}'
    return str(failure)

def figure(v, unit): return '–' if v is None else f'{v:.4g} {unit}'.rstrip()
def reached(r):
    return (f'{r["measure"]} {figure(r["value"], r["unit"])}'
            + (f' ({r["source_name"]}: {figure(r["source"], r["unit"])})' if r['source'] is not None else ''))

def print_line(result):
    words = ('FAILED, ' + result['failure'].splitlines()[0] if result['failure']
             else '; '.join(map(reached, result['reports'])) or 'passed')
    say(f'{result["lesson"]:<22}{result["seconds"]:6.0f} s   {words}')

def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    line = lambda row: '  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
    return '\n'.join([line(rows[0]), '  '.join('-'*w for w in widths), *map(line, rows[1:])])

HEAD = 'lesson', 'measure', 'source', 'conditions', 'reached here', 'data', 'seconds'

def rows(results):
    "One row for each figure that a lesson reported, and one for a lesson that reported none."
    for res in results:
        seconds = f'{res["seconds"]:.0f}'
        if res['failure'] or not res['reports']:
            yield (res['lesson'], 'FAILED' if res['failure'] else 'its assertions hold', '–', '–', '–', '–',
                   seconds)
        for r in res['reports']:
            source = (figure(r['source'], r['unit']) + (f' ({r["source_name"]})' if r['source'] is not None
                                                        and r['source_name'] else ''))
            yield (res['lesson'], r['measure'], source, r['conditions'] or '–', figure(r['value'], r['unit']),
                   r['data'], seconds)

def run(paths):
    """Run lessons, two at a time where there are two cores; lines in order, failures whole, a table at the
    end. Answers the exit status."""
    setup()
    at_once = min(2, os.cpu_count() or 1, len(paths))
    threads = 1 if at_once > 1 else None
    start = time.time()
    say(f'running {len(paths)} lesson{"s"*(len(paths) > 1)}'
        + (', two at a time with one thread each' if at_once > 1 else ''))
    results = []
    with ThreadPoolExecutor(at_once) as pool:
        for result in pool.map(lambda p: run_lesson(p, threads), paths):
            print_line(result)
            results.append(result)
    for r in results:
        if r['failure']: say(f'\n{"="*20} {r["lesson"]} failed {"="*20}\n{r["failure"]}')
    say('\n' + table([HEAD, *rows(results)]))
    failed = [r['lesson'] for r in results if r['failure']]
    say(f'\n{len(results) - len(failed)} of {len(results)} lessons passed, {len(failed)} failed'
        + (f' ({", ".join(failed)})' if failed else '') +
        f', in {time.time() - start:.0f} s; the executed notebooks are in {RUN.name}/')
    if paths == lessons():
        (RUN/'report.json.part').write_text(json.dumps(results, indent=1, ensure_ascii=False),
                                            encoding='utf-8')
        os.replace(RUN/'report.json.part', RUN/'report.json')
    return bool(failed)

def store(paths):
    """Run lessons as they run without a mirror, and keep the outputs of those that pass in nbs/, cleaned.
    Answers the exit status."""
    os.environ['EXP_DATA_MIRROR'] = ''
    with tempfile.TemporaryDirectory() as cache:
        os.environ['EXP_DATA'] = cache
        failed = run(paths)
    if failed: return failed
    for p in paths:
        shutil.copyfile(RUN/p.name, p)
        checked(*script('nbdev-clean'), '--fname', p)

# ---- the README's tables

def about(path):
    "A lesson's title, sentence, and what it builds on and how long it says it takes."
    text = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    title, sentence = re.search(r'^# (.+)$', text, re.M), re.search(r'^> (.+)$', text, re.M)
    builds = re.search(r'^Builds on: (.*?)\. Runs in (.+?)\.?$', text, re.M)
    if not (title and sentence and builds):
        stop(f'{path.name} should open with "# Title", "> a sentence" and "Builds on: …. Runs in …."')
    return title[1], sentence[1], builds[1], builds[2]

def markdown(rows):
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in (rows[0], ['---']*len(rows[0]), *rows[1:]))

def replace_between(text, name, new):
    "`text` with what stands between the markers `name` replaced."
    start, end = f'<!-- {name}: written by make results -->', f'<!-- end of {name} -->'
    if text.count(start) != 1 or text.count(end) != 1:
        stop(f'README.md should hold the markers {start} and {end} once each')
    return text[:text.index(start) + len(start)] + '\n' + new + '\n' + text[text.index(end):]

PICTURE = '02_tensors', 'nanoseconds per multiplication', NBS/'images'/'readme.png'

def picture():
    """Write the README's picture: the stored output of the one cell of a lesson that holds the words of
    PICTURE."""
    lesson, words, target = PICTURE
    cells = json.loads((NBS/f'{lesson}.ipynb').read_text(encoding='utf-8'))['cells']
    found = [o['data']['image/png'] for c in cells if c['cell_type'] == 'code'
             and words in ''.join(c['source']) for o in c['outputs'] if 'image/png' in o.get('data', {})]
    if len(found) != 1:
        stop(f'{lesson} should have one picture whose cell says {words!r}; it has {len(found)}')
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(base64.b64decode(''.join(found[0])))

def results():
    """Write the README's picture, its table of results and its map of lessons, from the stored notebooks and
    the last whole run."""
    if not (RUN/'report.json').is_file(): stop('there is no whole run to report; run `make course` first')
    runs = json.loads((RUN/'report.json').read_text(encoding='utf-8'))
    names = [p.stem for p in lessons()]
    if [r['lesson'] for r in runs] != names:
        stop('the last run was of other lessons than there are now; run `make course` again')
    if failed := [r['lesson'] for r in runs if r['failure']]:
        stop(f'{", ".join(failed)} failed in the last run')
    link = {p.stem: f'[{p.stem}](nbs/{p.name})' for p in lessons()}
    figures = [(link[r[0]], *r[1:6]) for r in rows(runs) if r[4] != '–']
    seconds = {r['lesson']: r['seconds'] for r in runs}
    minutes = lambda s: f'{s:.0f} s' if s < 60 else f'{s/60:.1f} min'
    lesson_map = [(link[p.stem], about(p)[1], about(p)[2], minutes(seconds[p.stem])) for p in lessons()]
    readme = ROOT/'README.md'
    text = readme.read_text(encoding='utf-8')
    text = replace_between(text, 'results', markdown([HEAD[:6], *figures]))
    text = replace_between(text, 'map',
                           markdown([('lesson', 'after it you can', 'builds on', 'runs in'), *lesson_map]))
    readme.write_text(text, encoding='utf-8', newline='\n')
    picture()
    say('wrote the tables and the picture of README.md')

# ---- the other targets

def checked(*command, **kw):
    "Run a command and say whether it succeeded."
    say('$', ' '.join(map(str, command)).replace(str(ROOT) + os.sep, ''))
    return subprocess.run(list(map(str, command)), cwd=ROOT, **kw).returncode == 0

def test():
    """pytest (which also compares exp/ with the notebooks and looks for uncleaned ones) and all notebooks,
    two at a time."""
    setup()
    notebooks = checked(*script('nbdev-test'), '--n-workers', min(2, os.cpu_count() or 1), '--timing',
                        env=environment(1))
    tests = checked(python(), '-m', 'pytest')
    say('everything holds' if notebooks and tests else 'FAILED: '
        + ' and '.join(n for n, ok in (('the notebooks', notebooks), ('pytest', tests)) if not ok))
    return not (notebooks and tests)

def export():
    setup()
    return not (checked(*script('nbdev-export')) and checked(*script('nbdev-clean')))

def lab():
    setup()
    return not checked(python(), '-m', 'jupyter', 'lab', ROOT/'nbs', env=environment(None))

def bench():
    setup()
    found = sorted((ROOT/'benchmarks').glob('[a-z]*.py'))
    if not found: say('there are no benchmarks yet')
    return not all([checked(python(), path) for path in found])

def clean():
    for name in ('_run', 'build', 'dist', '_docs', '.pytest_cache', '.hypothesis', '.benchmarks',
                 'exp.egg-info'):
        shutil.rmtree(ROOT/name, ignore_errors=True)
    for folder in [f for name in ('__pycache__', '.ipynb_checkpoints')
                   for top in ('nbs', 'exp', 'tests', 'tools', 'data', 'examples', 'benchmarks')
                   for f in (ROOT/top).rglob(name)]:
        shutil.rmtree(folder, ignore_errors=True)
    say('removed runs, builds and caches; .venv and downloaded data are kept')

def main(args):
    args = [a for a in args if a != '--here']
    command, rest = (args[0], args[1:]) if args else ('help', [])
    if command == '_execute': return execute(*rest)
    if command == 'store': return store([find_lesson(n) for n in rest] or lessons())
    if command == 'lesson':
        if len(rest) != 1: stop('which lesson? e.g. make lesson N=04, or python tools/course.py lesson 04')
        return run([find_lesson(rest[0])])
    plain = dict(run=lambda: run(lessons()), test=test, setup=setup, lab=lab, export=export, results=results,
                 bench=bench, clean=clean, help=lambda: say(__doc__.strip()))
    if command not in plain or rest: stop(f'unknown: {" ".join(args)}\n\n{__doc__.strip()}')
    return plain[command]()

if __name__ == '__main__':
    try: sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt: stop('stopped')
