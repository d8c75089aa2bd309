"""Runs, tests and maintains the course: what the Makefile's targets do, with the standard library alone.

    python tools/course.py COMMAND [NOTEBOOK …]

Commands:
    run         set up if need be, run all lessons, write them to _run/, end with a table   (make course)
    test        set up if need be, run ruff, every notebook and pytest                      (make test)
    test-fast   the tests that take seconds, for every few minutes                          (make test-fast)
    setup       make .venv, or bring it up to date                                          (make setup)
    lesson N    run one notebook: 09, 16b, 09_solutions, a name or a path                   (make lesson N=09)
    lab         open JupyterLab on a copy of the lessons, which keeps your work             (make lab)
    store [N]   run all notebooks or some, and keep their outputs in nbs/                   (make store N=09)
    export      write exp/ from the notebooks, and clean their metadata                     (make export)
    real [N]    run the lessons that use downloadable data on it, write benchmarks/real.json  (make real)
    results     write RESULTS.md and the README's tables and picture from the last run      (make results)
    bench       run the benchmarks                                                          (make bench)
    clean       remove what runs and builds left behind                                     (make clean)
    where NAME  the lesson, module and tests of a name of the library           (make where NAME=Learner)
    help        print this

With --here, the interpreter that runs this file is used as it is (a conda environment, say) and nothing is
installed. What else stands behind `lab` goes to JupyterLab, as in `lab --no-browser --port 9000`.
"""
import base64, configparser, hashlib, json, os, platform, re, shutil, signal, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS, RUN, VENV, LAB = ROOT/'nbs', ROOT/'_run', ROOT/'.venv', ROOT/'_lab'
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

def succeeds(*command):
    "Does this command run and exit with 0?"
    try: return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError: return False

def fingerprint():
    "What the environment is made from; another fingerprint makes it stale."
    files = [(ROOT/name).read_text(encoding='utf-8') for name in ('pyproject.toml', 'constraints.txt')]
    return hashlib.sha256('\0'.join([sys.version, str(ROOT), *files]).encode()).hexdigest()

def setting(name, default=''):
    "A setting of the course: EXP_<NAME>, or what settings.ini says."
    ini = configparser.ConfigParser(interpolation=None)
    raw = (ROOT/'settings.ini').read_bytes() if (ROOT/'settings.ini').is_file() else b''
    ini.read_string(raw.decode(json.detect_encoding(raw)))   # UTF-8, or what Windows' editors make of it
    return os.environ.get(f'EXP_{name.upper()}') or ini.get('exp', name, fallback=default).strip()

def announce_download():
    "Say so before a torch is fetched that brings CUDA's libraries along."
    report = subprocess.run([python(), '-m', 'pip', 'install', '-q', '--dry-run', '--no-deps', '--report',
                             '-',
                             '-c', str(ROOT/'constraints.txt'), 'torch'], capture_output=True, text=True)
    try: torch = json.loads(report.stdout)['install'][0]['metadata']
    except (ValueError, LookupError): return   # torch is there already, or pip will say itself what is wrong
    cuda = any(r.startswith(('nvidia', 'cuda')) for r in torch.get('requires_dist', []))
    if sys.platform == 'linux' and '+cpu' not in torch['version'] and cuda:
        say('  PyTorch comes with CUDA here: a download of several gigabytes. For the CPU build, stop '
            '(Ctrl-C)\n'
            '  and set EXP_TORCH_INDEX; README.md says how.')

def pip_install(*what):
    quiet = [] if sys.stdout.isatty() else ['-q', '--progress-bar', 'off']
    command = [python(), '-m', 'pip', 'install', '--disable-pip-version-check', *quiet, *what]
    if subprocess.run(command, cwd=ROOT).returncode:
        stop('the installation failed; pip says why above. Run the same command again to go on')

def setup():
    "Make .venv if there is none, bring it up to date if it is stale, and return at once if it is neither."
    if HERE: return
    (_, low), (_, high) = PYTHONS
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        stop(f'Python {sys.version.split()[0]} runs this; the course needs 3.{low} to 3.{high}, '
             'e.g. make course PYTHON=python3.12')
    stamp, wanted = VENV/'course-stamp', fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted and succeeds(python(), '-c', 'import torch, exp'):
        return
    start = time.time()
    same = succeeds(python(), '-c', f'import sys; sys.exit(sys.version != {sys.version!r})')
    if same and succeeds(python(), '-m', 'pip', '--version'): say(f'bringing {VENV.name}/ up to date')
    else:
        say(f'setting up {VENV.name}/ with Python {sys.version.split()[0]}')
        if subprocess.run([sys.executable, '-m', 'venv', '--clear', str(VENV)]).returncode:
            stop("Python's venv is missing or failed (on Debian and Ubuntu: apt install python3-venv)")
    constraints = ['-c', str(ROOT/'constraints.txt')]
    if index := setting('torch_index'): pip_install('--index-url', index, *constraints, 'torch')
    else: announce_download()
    say('  installing the packages that constraints.txt names; minutes, the first time')
    pip_install(*constraints, '-e', '.[dev,reference]')
    stamp.write_text(wanted)
    say(f'  set up in {time.time() - start:.0f} s')

# ---- the notebooks

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def number(path): return path.name.split('_')[0]
def is_workshop(path): return bool(re.search(r'[Tt]his (is a )?workshop', source(cells(path)[0])))

def lessons():
    "Lessons and workshops, in the order of reading."
    return sorted(p for p in NBS.glob('[0-9]*_*.ipynb') if number(p) not in ('98', '99'))
def appendices(): return sorted(NBS.glob('9[89]_*.ipynb'))
def solutions(): return sorted((NBS/'solutions').glob('[0-9]*_solutions.ipynb'))

def find_notebook(what):
    "A notebook by its number (`09`, `16b`; its solutions `09_solutions`), name or path."
    every = [*lessons(), *appendices(), *solutions()]
    name = Path(what).name.removesuffix('.ipynb')
    if name.isdigit(): name = name.zfill(2)
    for p in every:
        short = number(p) + ('_solutions' if p.parent.name == 'solutions' else '')
        if name in (p.stem, short): return p
    stop(f'there is no notebook {what}; there are {", ".join(map(number, [*lessons(), *appendices()]))}, '
         'and 00_solutions and so on')

def where(name):
    "Say where a name of the library is taught, defined and tested: in files of its module first."
    for module in sorted((ROOT/'exp').glob('[a-z]*.py')):
        text, section = module.read_text(encoding='utf-8'), ''
        if not (found := re.search(rf'^(?:(?:def|class) {name}\b|{name} *[=:])', text, re.M)): continue
        notebook, id = re.findall(r'^# %% \.\./(\S+) #(\S+)', text[:found.start()], re.M)[-1]
        for cell in cells(ROOT/notebook):
            section = (re.findall(r'^## (.+)', source(cell), re.M) or [section])[-1]
            if cell['id'] == id: break
        tests = [p.relative_to(ROOT).as_posix() for p in (ROOT/'tests').rglob('*.py')
                 if re.search(rf'\b{name}\b', p.read_text(encoding='utf-8'))]
        tests.sort(key=lambda p: (re.search(rf'/test_{module.stem}[_.]', p) is None, p))
        return say(f'lesson  {notebook}, {section}\nmodule  exp/{module.name}\ntests   {", ".join(tests)}')
    stop(f'exp defines no {name}')

# ---- running notebooks

def environment(threads=None, **more):
    "The environment variables for a process: `threads` for torch, None for all of them."
    env = dict(os.environ, PYTHONUTF8='1', PYDEVD_DISABLE_FILE_VALIDATION='1', **more)
    # a thread that waits sleeps; where it spins, another job on the machine costs a lesson many times its
    # time
    env.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # else the C library hands large tensors back to the system, which clears their pages anew: half the time
    # of a training step
    if sys.platform == 'linux':
        for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'): env.setdefault(name, str(2**32))
    if threads: env.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    return env

def run_notebook(path, target, threads, show=False):
    """Run one notebook, written to `target`. Returns its name, seconds, reports and, if it failed, the
    failure."""
    target.unlink(missing_ok=True)   # what was there before should not look like this run
    with tempfile.TemporaryDirectory() as folder:
        reports, failed = Path(folder)/'report.jsonl', Path(folder)/'failure.txt'
        start = time.time()
        command = [python(), __file__, '_execute', str(path), str(target), str(failed), *['show']*show]
        done = subprocess.run(command, env=environment(threads, EXP_REPORT=str(reports)), encoding='utf-8',
                              errors='replace', stdout=None if show else subprocess.PIPE,
                              stderr=subprocess.PIPE)
        seconds = time.time() - start
        lines = reports.read_text(encoding='utf-8').splitlines() if reports.exists() else []
        failure = failed.read_text(encoding='utf-8') if failed.exists() else None
    if done.returncode and not failure:
        failure = done.stderr.strip() or f'it ended with exit status {done.returncode}'
    return dict(lesson=path.stem, seconds=round(seconds, 1), reports=[json.loads(l) for l in lines],
                failure=failure)

def execute(path, target, failed, show=False):
    """Run a notebook in a kernel, in the environment's interpreter, and write it with its outputs, also where
    a cell fails; a run that is broken off writes nothing."""
    import nbclient, nbformat
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.update(outputs=[], execution_count=None)
    start = time.time()
    def section(cell, cell_index):
        title = re.match(r'## (.+)', cell.source)
        if title:
            say(f'{time.time() - start:6.0f} s   cell {cell_index + 1:3} of {len(nb.cells)}   {title[1]}')
    client = nbclient.NotebookClient(nb, timeout=3600, kernel_name='python3', store_widget_state=False,
                                     resources={'metadata': {'path': str(Path(path).parent)}},
                                     on_cell_start=section if show else None)
    errors = nbclient.exceptions
    try: client.execute()
    except (errors.CellExecutionError, errors.CellTimeoutError, errors.DeadKernelError) as e:
        Path(failed).write_text(describe(nb, e), encoding='utf-8')
    Path(target).parent.mkdir(exist_ok=True)
    nbformat.write(nb, target + '.part')
    os.replace(target + '.part', target)
    return Path(failed).exists()

def describe(nb, failure):
    "The cell that failed, its source and its traceback, as text."
    for i, cell in enumerate(nb.cells):
        for o in cell.get('outputs', []):
            if o.output_type == 'error':
                trace = re.sub(r'\x1b\[[0-9;]*m', '', '\n'.join(o.traceback))
                return f'cell {i + 1} failed: {o.ename}: {o.evalue}\n\n{cell.source}\n\n{trace}'
    return str(failure)

def run_all(paths, folder, show=False):
    """Run notebooks into `folder`, two at a time where there are two cores; lines in order, then failures
    whole."""
    at_once = min(2, os.cpu_count() or 1, len(paths))
    threads = 1 if at_once > 1 else None
    how = ', two at a time with one thread each' if at_once > 1 else ''
    say(f'running {len(paths)} notebook{"s"*(len(paths) > 1)}{how}')
    start, results = time.time(), []
    with ThreadPoolExecutor(at_once) as pool:
        for result in pool.map(lambda p: run_notebook(p, folder/p.name, threads, show), paths):
            words = '; '.join(map(reached, result['reports'])) or 'passed'
            if result['failure']: words = 'FAILED, ' + result['failure'].splitlines()[0]
            say(f'{result["lesson"]:<32}{result["seconds"]:6.0f} s   {words}')
            results.append(result)
    for r in results:
        if r['failure']: say(f'\n{"="*20} {r["lesson"]} failed {"="*20}\n{r["failure"]}')
    failed = [r['lesson'] for r in results if r['failure']]
    say(f'\n{len(results) - len(failed)} of {len(results)} notebooks passed, {len(failed)} failed'
        + f' ({", ".join(failed)})'*bool(failed) + f', in {time.time() - start:.0f} s')
    return results

def write(path, text):
    "Write beside `path`, then rename."
    part = path.with_name(path.name + '.part')
    part.write_text(text, encoding='utf-8', newline='\n')
    os.replace(part, path)

def has_failed(results): return any(r['failure'] for r in results)

def run(paths):
    "Run lessons into _run/, with a table at the end; returns the exit status."
    setup()
    results = run_all(paths, RUN, show=len(paths) == 1)
    say('\n' + table([HEAD, *rows(results)]))
    say(f'\nthe executed notebooks are in {RUN.name}/')
    if paths == lessons(): write(RUN/'report.json', json.dumps(results, indent=1, ensure_ascii=False))
    return has_failed(results)

@contextmanager
def embedded():
    """A block in which notebooks and tests find no data but what the repository carries and they make
    themselves."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(EXP_DATA_MIRROR='', EXP_DATA=cache)
        try: yield
        finally:
            os.environ.clear()
            os.environ.update(before)

def store(paths):
    """Run notebooks on what is embedded, and keep their outputs in nbs/, cleaned, if all pass; the exit
    status."""
    setup()
    with embedded(): results = run_all(paths, RUN)
    if has_failed(results): return True
    for p in paths:
        shutil.copyfile(RUN/p.name, p)
        checked(*script('nbdev-clean'), '--fname', p)
    if set(lessons()) <= set(paths):
        names = {p.stem for p in lessons()}
        found = [r for r in results if r['lesson'] in names]
        write(RUN/'report.json', json.dumps(found, indent=1, ensure_ascii=False))

# ---- tables of results

def figure(v, unit): return '–' if v is None else f'{v:.4g} {unit}'.rstrip()
def sourced(r):
    "What the source reports, and its name."
    return figure(r['source'], r['unit']) + (f' ({r["source_name"]})' if r['source_name'] else '')
def reached(r):
    return (f'{r["measure"]} {figure(r["value"], r["unit"])}'
            + f' (source: {sourced(r)})'*(r['source'] is not None))

HEAD = 'lesson', 'measure', 'source', 'conditions', 'reached here', 'data', 'seconds'

def rows(results):
    "One row for each figure that a lesson reported, and one for a lesson that reported none."
    for res in results:
        if res['failure'] or not res['reports']:
            words = 'FAILED' if res['failure'] else 'its assertions hold'
            yield res['lesson'], words, '–', '–', '–', '–', f'{res["seconds"]:.0f}'
        for r in res['reports']:
            yield (res['lesson'], r['measure'], sourced(r), r['conditions'] or '–',
                   figure(r['value'], r['unit']), r['data'], f'{res["seconds"]:.0f}')

def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    line = lambda row: '  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
    return '\n'.join([line(rows[0]), '  '.join('-'*w for w in widths), *map(line, rows[1:])])

def markdown(rows):
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in (rows[0], ['---']*len(rows[0]), *rows[1:]))

REAL = ROOT/'benchmarks'/'real.json'

def circumstances():
    "What figures were measured with: commit, processor and cores, seed."
    git = shutil.which('git')
    commit = subprocess.run([git, 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True,
                            text=True).stdout.strip() if git else ''
    cpus = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').is_file() else ''
    model = re.search(r'model name\s*: (.+)', cpus)
    machine = model[1] if model else platform.processor() or platform.machine()
    return dict(commit=commit, machine=f'{machine}, {os.cpu_count()} cores', seed=int(setting('seed', '42')))

def real(paths):
    """Run lessons that use a downloadable data set, and keep what they reach on it in benchmarks/real.json,
    beside what other lessons reached before."""
    setup()
    results = run_all(paths, RUN)
    found = [{**f, 'lesson': r['lesson']} for r in results for f in r['reports']
             if f['data'] in ('real', 'mirror')]
    if has_failed(results) or not found:
        stop('nothing is kept: a lesson failed or had no real data; set EXP_DATA_MIRROR to a folder of the '
             'sets')
    names = {f['lesson'] for f in found}
    before = json.loads(REAL.read_text(encoding='utf-8')) if REAL.is_file() else []
    kept = [f for f in before if f['lesson'] not in names]
    how = circumstances()
    every = sorted(kept + [f | how for f in found], key=lambda f: f['lesson'])
    write(REAL, json.dumps(every, indent=1, ensure_ascii=False) + '\n')
    say(f'wrote {len(found)} figures to benchmarks/real.json; `make results` shows them')
    return False

def with_downloads():
    "The lessons that use a downloadable data set."
    return [p for p in lessons()
            if any('data_kind(' in source(c) for c in cells(p) if c['cell_type'] == 'code')]

def about(path):
    "A notebook's title, sentence, and what it builds on."
    text = source(cells(path)[0])
    title, sentence = re.search(r'^# (.+)$', text, re.M), re.search(r'^> (.+)$', text, re.M)
    builds = re.search(r'^Builds on: (.*?)\. Runs in .+\.$', text, re.M)
    if not (title and sentence and builds):
        stop(f'{path.name} should open with "# Title", "> a sentence" and "Builds on: …. Runs in …."')
    return title[1], sentence[1], builds[1]

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
    outputs = [o for c in cells(NBS/f'{lesson}.ipynb') if words in source(c) for o in c.get('outputs', [])]
    found = [o['data']['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    if len(found) != 1:
        stop(f'{lesson} should have one picture whose cell says {words!r}; it has {len(found)}')
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(base64.b64decode(''.join(found[0])))

RESULTS = """# What the lessons reach

Written by `make results`. Each figure is what the last run of all lessons measured on what the repository
carries, beside what the source reports under its conditions; *on the real set* is what `make real` measured
where a lesson's own data set was there (benchmarks/real.json). 2019 stands for fast.ai's *Deep Learning from
the Foundations*, D2L for *Dive into Deep Learning*.

"""

def results():
    """Write RESULTS.md, and the README's picture, digest and map, from the last run of all lessons and
    real.json."""
    if not (RUN/'report.json').is_file(): stop('there is no whole run to report; run `make course` first')
    runs = json.loads((RUN/'report.json').read_text(encoding='utf-8'))
    if [r['lesson'] for r in runs] != [p.stem for p in lessons()]:
        stop('the last run was of other lessons than there are now; run `make course` again')
    if failed := [r['lesson'] for r in runs if r['failure']]:
        stop(f'{", ".join(failed)} failed in the last run')
    on_real = ({(r['lesson'], r['measure']): r for r in json.loads(REAL.read_text(encoding='utf-8'))}
               if REAL.is_file() else {})
    link = {p.stem: f'[{p.stem}](nbs/{p.name})' for p in lessons()}
    body = []
    for run in runs:
        lesson, here = run['lesson'], {r['measure']: r for r in run['reports']}
        there = {measure: r for (name, measure), r in on_real.items() if name == lesson}
        for measure in here | there:   # some are measured on real data alone
            r, other = here.get(measure), there.get(measure)
            body.append((link[lesson], measure, sourced(other or r), (r or other)['conditions'] or '–',
                         figure(r['value'], r['unit']) if r else '–', r['data'] if r else '–',
                         figure(other['value'], other['unit']) if other else '–'))
    head = 'lesson', 'measure', 'source', 'conditions', 'reached here', 'data', 'on the real set'
    write(ROOT/'RESULTS.md', RESULTS + markdown([head, *body]) + '\n')
    digest = [(row[0], row[1], row[2], row[6] if row[6] != '–' else row[4]) for row in body if row[2] != '–']
    minutes = lambda s: f'{s:.0f} s' if s < 60 else f'{s/60:.1f} min'
    seconds = {r['lesson']: r['seconds'] for r in runs}
    lesson_map = []
    for p in lessons():
        _, sentence, builds = about(p)
        name = link[p.stem] + ' (workshop)'*is_workshop(p)
        lesson_map.append((name, sentence, builds, minutes(seconds[p.stem])))
    readme = ROOT/'README.md'
    text = readme.read_text(encoding='utf-8')
    text = replace_between(text, 'results',
                           markdown([('lesson', 'measure', 'source', 'reached here'), *digest]))
    text = replace_between(text, 'map',
                           markdown([('lesson', 'after it you can', 'builds on', 'runs in'), *lesson_map]))
    write(readme, text)
    picture()
    say('wrote RESULTS.md, and the tables and the picture of README.md')

# ---- the lab: a copy that is the learner's

GIVEN = LAB/'.given'   # the files as they were handed out: what differs from them is the learner's

def handed_out():
    "The files of the checkout that the lab has copies of."
    yield from (p for p in NBS.rglob('*') if p.is_file() and '.ipynb_checkpoints' not in p.parts
                and not p.name.startswith('_'))   # lessons that are not finished
    for folder in ('exp', 'examples'): yield from (ROOT/folder).rglob('*.py')
    yield from (ROOT/name for name in ('README.md', 'RESULTS.md', 'settings.ini') if (ROOT/name).is_file())

def marks(text):
    "Each cell of a notebook by its id and a digest of its source."
    digest = lambda c: hashlib.sha256(source(c).encode()).hexdigest()
    return {f'{c["id"]} {digest(c)}': c for c in json.loads(text)['cells']}

def merged(mine, seen, new):
    """A learner's notebook brought up to date, as text, and what to say of it: None if none is a learner's.
    `seen` are the marks of all cells that were ever handed out. Cells that the learner changed stay as they
    are, cells that the learner added follow the cell that they followed, all others are the new ones."""
    before = {mark.split()[0] for mark in seen}
    fresh = {c['id'] for mark, c in marks(new).items() if mark not in seen}
    mine, new = marks(mine), json.loads(new)
    own = {c['id']: c for mark, c in mine.items() if mark not in seen}
    hidden = len(own.keys() & before & fresh)
    told = f'{len(own)} cell{"s"*(len(own) > 1)} of yours' if own else None
    if hidden: told += f', {hidden} of them changed in the course too'
    follows = {}   # what the learner added, by the id of the cell before
    last = None
    for c in mine.values():
        if c['id'] not in before: follows.setdefault(last, []).append(c)
        else: last = c['id']
    out = follows.pop(None, [])
    for c in new['cells']:
        out += [own.pop(c['id'], c), *follows.pop(c['id'], [])]
    out += [c for added in follows.values() for c in added]
    ids = {c['id'] for c in out}
    out += [c for c in own.values() if c['id'] not in ids]   # answers in cells that are no more
    return json.dumps({**new, 'cells': out}, sort_keys=True, indent=1, ensure_ascii=False) + '\n', told

def versions(path):
    "What a file is known by later: the marks of a notebook's cells, else a digest of the whole."
    if path.suffix == '.ipynb': return list(marks(path.read_text(encoding='utf-8')))
    return [hashlib.sha256(path.read_bytes()).hexdigest()]

def in_lab(path):
    "Where the lab has a file of the checkout. A folder `exp` would be imported by notebooks beside it."
    name = path.relative_to(ROOT)
    return Path('library', *name.parts[1:]) if name.parts[0] == 'exp' else name

def update_lab():
    "Bring the lab's files up to date, and lose nothing of the learner's; returns what to tell the learner."
    news, first, earlier = [], not GIVEN.exists(), LAB/'before updates'
    earlier.mkdir(parents=True, exist_ok=True)
    if (LAB/'exp').exists(): (LAB/'exp').rename(earlier/'exp')   # of labs before `library`
    for path in handed_out():
        name, new = in_lab(path), path.read_bytes()
        mine, given, seen = LAB/name, GIVEN/name, GIVEN/f'{name}.seen'   # the last: of all versions
        for folder in (mine.parent, given.parent): folder.mkdir(parents=True, exist_ok=True)
        if given.is_file() and given.read_bytes() == new and mine.exists(): continue
        called, notebook = name.as_posix(), path.suffix == '.ipynb'
        if notebook and not given.exists() and not first: news.append(f'{called} is new')
        known = versions(given) if given.is_file() else []   # of labs that have no file `seen` yet
        if seen.is_file(): known = seen.read_text().splitlines()
        changed = mine.exists() and given.is_file() and mine.read_bytes() != given.read_bytes()
        if changed and not notebook and versions(mine)[0] not in known:
            news.append(f'{called} has a new version; yours is changed and stays as it is')
            continue
        if changed and notebook:
            try: text, told = merged(mine.read_text(encoding='utf-8'), set(known), new)
            except (ValueError, KeyError):   # cut short, or from an editor that gives cells no ids
                news.append(f'{called} has a new version; yours cannot be read and stays as it is')
                continue
            shutil.copyfile(mine, earlier/f'{time.strftime("%Y-%m-%d %H.%M.%S")} {mine.name}')
            write(mine, text)
            if told: news.append(f'{called} is brought up to date and keeps {told}')
        else:
            mine.unlink(missing_ok=True)
            shutil.copyfile(path, mine)
            if name.parts[0] == 'library': mine.chmod(0o444)   # to read: what runs is the checkout's
        write(seen, '\n'.join(dict.fromkeys([*known, *versions(path)])))
        shutil.copyfile(path, given)
    if not (LAB/'data').exists():
        try: (LAB/'data').symlink_to(ROOT/'data', target_is_directory=True)
        except OSError: pass   # Windows without the right to make links
    return news

def start_page():
    "A notebook of one text: the lessons with links into the lab."
    lines = ['# Start here', '',
             'Open a lesson, change what you like, and answer its exercises. All in this folder is yours: '
             'an update of the course brings new lessons and keeps your answers (and, in *before updates*, '
             'your notebook as it was). A lesson that you delete comes back as it was handed out, at the '
             'next start. Solutions are in *nbs/solutions*, the library is in *library*, and README.md is '
             'beside this page.', '']
    for p in lessons():
        title, sentence, _ = about(p)
        lines.append(f'- [{number(p)} {title}](nbs/{p.name}){" *(workshop)*"*is_workshop(p)}: {sentence}')
    cell = dict(cell_type='markdown', id='start', metadata={}, source='\n'.join(lines))
    kernel = dict(name='python3', display_name='Python 3 (ipykernel)', language='python')
    return json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5))

def lab(*options):
    setup()
    LAB.mkdir(exist_ok=True)
    for line in update_lab(): say(line)
    write(LAB/'start.ipynb', start_page())
    command = [python(), '-m', 'jupyter', 'lab', f'--ServerApp.root_dir={LAB}',
               '--LabApp.default_url=/lab/tree/start.ipynb', *options]
    say('starting JupyterLab; Ctrl-C here ends it')
    server = subprocess.Popen(command, cwd=ROOT, env=environment(EXP_SETTINGS=str(LAB/'settings.ini')))
    # Ctrl-C is the server's: it asks, and ends its kernels. Ignored from here on, not by the server too
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    return server.wait() != 0

# ---- the other targets

def checked(*command, **kw):
    "Run a command and say whether it succeeded."
    say('$', ' '.join(map(str, command)).replace(str(ROOT) + os.sep, ''))
    return subprocess.run(list(map(str, command)), cwd=ROOT, **kw).returncode == 0

def pytest(*options):
    "Tests in two processes of one thread where there are two cores; a file's tests run in one of them."
    return checked(python(), '-m', 'pytest', '-n', min(2, os.cpu_count() or 1), '--dist', 'loadfile',
                   *options,
                   env=environment(1))

def test():
    """ruff, every notebook and all tests on what is embedded; where a mirror is set, one batch of each of its
    sets."""
    setup()
    mirror = os.environ.get('EXP_DATA_MIRROR', '')
    style = checked(python(), '-m', 'ruff', 'check', '.')
    with embedded(), tempfile.TemporaryDirectory() as folder:
        os.environ['COURSE_SMOKE_MIRROR'] = mirror
        notebooks = not has_failed(run_all([*lessons(), *appendices(), *solutions()], Path(folder)))
        tests = pytest()
    failed = [name for name, ok in (('ruff', style), ('the notebooks', notebooks), ('pytest', tests))
              if not ok]
    say('FAILED: ' + ' and '.join(failed) if failed else 'everything holds')
    return bool(failed)

def test_fast():
    setup()
    with embedded(): return not pytest('-m', 'not slow and not launch and not network')

def export():
    setup()
    return not (checked(*script('nbdev-export')) and checked(*script('nbdev-clean')))

def bench():
    setup()
    return not all([checked(python(), path) for path in sorted((ROOT/'benchmarks').glob('[a-z]*.py'))])

def clean():
    for name in ('_run', 'build', 'dist', '_docs', '.pytest_cache', '.hypothesis', '.benchmarks',
                 '.ruff_cache',
                 'exp.egg-info'):
        shutil.rmtree(ROOT/name, ignore_errors=True)
    for top in ('nbs', 'exp', 'tests', 'tools', 'data', 'examples', 'benchmarks'):
        for name in ('__pycache__', '.ipynb_checkpoints'):
            for folder in [*(ROOT/top).rglob(name)]: shutil.rmtree(folder, ignore_errors=True)
    say('removed runs, builds and caches; .venv, the lab and downloaded data are kept')

PLAIN = {'run': lambda: run(lessons()), 'test': test, 'test-fast': test_fast, 'setup': setup,
         'export': export,
         'results': results, 'bench': bench, 'clean': clean}

def main(args):
    args = [a for a in args if a != '--here']
    command, rest = (args[0], args[1:]) if args else ('help', [])
    if command in ('help', '--help', '-h') or {'--help', '-h'} & set(rest) and command != 'lab':
        return say(__doc__.strip())
    if command == '_execute': return execute(*rest)
    if command == 'lab': return lab(*rest)
    if command == 'store':
        return store([find_notebook(n) for n in rest] or [*lessons(), *appendices(), *solutions()])
    if command == 'real': return real([find_notebook(n) for n in rest] or with_downloads())
    if command == 'where' and rest: return where(*rest)
    if command == 'lesson':
        if not rest: stop('which lesson? e.g. make lesson N=04, or python tools/course.py lesson 04')
        return run([find_notebook(n) for n in rest])
    if command not in PLAIN or rest: stop(f'unknown: {" ".join(args)}\n\n{__doc__.strip()}')
    return PLAIN[command]()

if __name__ == '__main__':
    if hasattr(signal, 'SIGTERM'): signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try: sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt: stop('stopped')
